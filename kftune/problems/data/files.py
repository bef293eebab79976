"""Single files: their content, decompressed if need be, and its checksum."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

from kftune.errors import UsageError

__all__ = ["content_md5", "corrupt", "file_md5", "read_content"]

_GZIP_MAGIC = b"\x1f\x8b"


def read_content(path: Path) -> bytes:
    """The bytes of a file, decompressed if it is gzipped.

    Raises:
        UsageError: the file cannot be read or decompressed; names the file.
    """
    raw = _read_bytes(path)
    if not raw.startswith(_GZIP_MAGIC):
        return raw
    try:
        return gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise corrupt(path, f"it cannot be decompressed: {error}") from error


def content_md5(path: Path) -> str:
    """MD5 of :func:`read_content`, which unlike the compressed file's does not depend on who compressed it.

    Raises:
        UsageError: as :func:`read_content`.
    """
    return hashlib.md5(read_content(path), usedforsecurity=False).hexdigest()


def file_md5(path: Path) -> str:
    """MD5 of a file as it is.

    Raises:
        UsageError: the file cannot be read; names the file.
    """
    return hashlib.md5(_read_bytes(path), usedforsecurity=False).hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def corrupt(path: Path, why: str) -> UsageError:
    """The error for a file that is not what it should be, with the remedy."""
    return UsageError(f"{path} is corrupt: {why}; delete it and fetch it again with `kftune data fetch`")
