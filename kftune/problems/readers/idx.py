"""The IDX format of MNIST and its relatives: two zero bytes, a type code, the rank, big-endian sizes, the values."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kftune.problems.data.files import corrupt, read_content

__all__ = ["read_idx"]

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
