"""The command line: one file per command, each parses, calls one function and renders what comes back."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from kftune.errors import UsageError, UserCodeError
from kftune.wording import without_passwords

__all__ = ["main"]

_EXIT_FAILED = 1
_EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``kftune`` and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Args:
        argv: arguments after the program's name; those of the process by default.
    """
    import typer

    from kftune.cli._app import app

    _print_anything()
    try:
        code = app(args=argv, prog_name="kftune", standalone_mode=False)
    except UsageError as error:
        _complain(str(error))
        return _EXIT_USAGE
    except UserCodeError as error:
        print(error, file=sys.stderr)  # a traceback, as of any program of theirs
        return _EXIT_FAILED
    except typer.TyperException as error:
        _complain(error.format_message())
        return error.exit_code
    return code if isinstance(code, int) else 0


def _print_anything() -> None:
    """Escape what the terminal, or its encoding, has no character for: no text may end a command that works."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _complain(message: str) -> None:
    # Whoever wrote the message has hidden what is secret; this is for what nobody thought of.
    for line in without_passwords(message).splitlines():
        print(f"error: {line}", file=sys.stderr)
