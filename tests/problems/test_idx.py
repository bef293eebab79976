"""The IDX reader: what it reads and what it refuses."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from kftune.errors import UsageError
from kftune.problems.data.files import content_md5
from kftune.problems.readers.idx import read_idx

VALUES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
GOOD = b"\x00\x00\x08\x03" + struct.pack(">3I", 2, 3, 4) + bytes(range(24))
ZIPPED = gzip.compress(GOOD, mtime=0)  # every process that collects these tests must call them the same


@pytest.mark.parametrize("name", ["x-idx3-ubyte.gz", "x-idx3-ubyte"])
@pytest.mark.parametrize("compressed", [True, False])
def test_reads_raw_and_gzipped_whatever_the_name(tmp_path: Path, name: str, compressed: bool) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(GOOD) if compressed else GOOD)
    np.testing.assert_array_equal(read_idx(path, rank=3), VALUES)
    assert content_md5(path) == hashlib.md5(GOOD).hexdigest()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "two zero bytes"),
        (b"<html>not found</html>", "two zero bytes"),
        (b"\x00\x00\x0d" + GOOD[3:], "type 0x0d"),
        (b"\x00\x00\x08\x01" + GOOD[4:], "3 dimensions, got 1"),
        (GOOD[:10], "header must have 16 bytes, the file has 10"),
        (GOOD[:-1], "announces 24 values, it has 23"),
        (GOOD + b"\x00", "announces 24 values, it has 25"),
        # Sizes whose product is 0 modulo 2⁶⁴.
        (GOOD[:4] + struct.pack(">3I", 2**31, 2**31, 4), "announces 18446744073709551616 values, it has 0"),
        (ZIPPED[:-9], "cannot be decompressed"),
        (ZIPPED[:12] + b"\xff\xff\xff" + ZIPPED[15:], "cannot be decompressed"),
        (b"\x1f\x8b\x00\x00\x00", "cannot be decompressed"),
    ],
)
def test_corrupt_files_are_refused_by_name(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=why) as caught:
        read_idx(path, rank=3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*No such file"):
        read_idx(tmp_path / "absent", rank=1)
    with pytest.raises(UsageError, match=r"cannot read .*directory"):
        read_idx(tmp_path, rank=1)
