"""The IDX format of MNIST and its relatives: two zero bytes, a type code, the rank, big-endian sizes, the values."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kftune.errors import UsageError

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, *, rank: int) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, gzipped or not (the content decides, not the name).

    Args:
        path: the file.
        rank: number of dimensions that it must have, e.g. 3 for images.

    Raises:
        UsageError: the file cannot be read, or is not what it should be; names the file.
    """
    content = read_content(path)
    header = 4 + 4 * rank
    if len(content) < 4 or content[:2] != b"\x00\x00":
        raise corrupt(path, "it is not an IDX file (it must start with two zero bytes)")
    if content[2] != _UNSIGNED_BYTE:
        raise corrupt(path, f"its values must be unsigned bytes (type 0x08), got type {content[2]:#04x}")
    if content[3] != rank:
        raise corrupt(path, f"it must have {rank} dimensions, got {content[3]}")
    if len(content) < header:
        raise corrupt(path, f"its header must have {header} bytes, the file has {len(content)}")
    shape = struct.unpack(f">{rank}I", content[4:header])
    values = np.frombuffer(content, np.uint8, offset=header)
    # Python's integers: a product of corrupt sizes must not wrap around.
    expected = 1
    for size in shape:
        expected *= size
    if len(values) != expected:
        raise corrupt(path, f"its header announces {expected} values, it has {len(values)}")
    return values.reshape(shape)


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
