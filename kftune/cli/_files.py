"""Text files that commands write beside what they print."""

from __future__ import annotations

from pathlib import Path

from kftune.errors import UsageError

__all__ = ["write_text"]


def write_text(out: Path, text: str) -> None:
    """Write ``text`` as UTF-8.

    Raises:
        UsageError: ``out`` cannot be written.
    """
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None
