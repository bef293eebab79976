"""CIFAR's binary batches: records of one label byte and 3072 pixel bytes (red, green, blue plane; rows first).

They are read from the archive as it is distributed, or from what was unpacked from it.
"""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kftune.errors import UsageError
from kftune.problems.data.datasets import DataFile
from kftune.problems.data.files import corrupt

SHAPE = (3, 32, 32)
N_RECORDS = 10_000
_N_CLASSES = 10
_RECORD_BYTES = 1 + 3 * 32 * 32


def read_batches(path: Path, file: DataFile) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """(images (10000, 3, 32, 32), labels (10000,)) of every batch, in the order of ``file.members``.

    Args:
        path: the archive, or the directory in which it was unpacked.
        file: names the batches.

    Raises:
        UsageError: a file cannot be read, or is not what it should be; names the file.
    """
    contents = _unpacked(path, file) if path.is_dir() else _archived(path, file)
    return [_decode(content, path / member) for content, member in zip(contents, file.members, strict=True)]


def _unpacked(directory: Path, file: DataFile) -> list[bytes]:
    contents = []
    for member in file.members:
        try:
            contents.append((directory / member).read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read {directory / member}: {error.strerror or error}") from error
    return contents


def _archived(path: Path, file: DataFile) -> list[bytes]:
    found: dict[str, bytes] = {}
    try:
        # Member by member as they come: looking one up by name would decompress everything before it once more.
        with tarfile.open(path, "r|gz") as archive:
            for info in archive:
                content = archive.extractfile(info) if info.name in file.members else None
                if content is not None:
                    found[info.name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise corrupt(path, f"it cannot be unpacked: {error}") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    missing = [member for member in file.members if member not in found]
    if missing:
        raise corrupt(path, f"it has no {', '.join(missing)}")
    return [found[member] for member in file.members]


def _decode(content: bytes, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    expected = N_RECORDS * _RECORD_BYTES
    if len(content) != expected:
        raise corrupt(path, f"{N_RECORDS} records of {_RECORD_BYTES} bytes are {expected} bytes, it has {len(content)}")
    records = np.frombuffer(content, np.uint8).reshape(N_RECORDS, _RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() >= _N_CLASSES:
        raise corrupt(path, f"labels must be below {_N_CLASSES}, the largest is {labels.max()}")
    return records[:, 1:].reshape(-1, *SHAPE), labels
