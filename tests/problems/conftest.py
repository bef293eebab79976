"""Where the real data are, and small IDX files for the tests that need none."""

from __future__ import annotations

import gzip
import importlib.util
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kftune.problems import DATASETS

_REPOSITORY = Path(__file__).resolve().parents[2]
_DATA = Path(os.environ.get("KFTUNE_TEST_DATA", _REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """A data directory with the real MNIST."""
    if not all((_DATA / "mnist" / file.name).is_file() for file in DATASETS["mnist"].files):
        pytest.skip(f"no MNIST in {_DATA} (KFTUNE_TEST_DATA)")
    return _DATA


@pytest.fixture(scope="session")
def cifar_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with CIFAR-10's photographs: the real ones, or unpacked from a copy with JPEG's losses."""
    (file,) = DATASETS["cifar10"].files
    if (_DATA / "cifar10" / file.name).is_file() or (_DATA / "cifar10" / file.members[0]).is_file():
        return _DATA
    unpack = _DATA / "unpack_cifar10.py"
    if not unpack.is_file() or not (_DATA / "cifar10_jpeg.npz").is_file() or importlib.util.find_spec("PIL") is None:
        pytest.skip(f"no CIFAR-10 in {_DATA} (KFTUNE_TEST_DATA), or no Pillow to unpack its copy")
    data_dir = tmp_path_factory.mktemp("cifar")
    subprocess.run([sys.executable, unpack, data_dir / "cifar10"], check=True, capture_output=True)
    return data_dir


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """An array in the IDX format."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist_like(directory: Path, *, n_train: int = 60_000, n_test: int = 10_000, largest_label: int = 9) -> None:
    """The four files, of MNIST's sizes by default; pixel values depend on the position only."""
    directory.mkdir(parents=True, exist_ok=True)
    for prefix, n in (("train", n_train), ("t10k", n_test)):
        images = np.broadcast_to(np.arange(784, dtype=np.uint8).reshape(28, 28), (n, 28, 28))
        labels = (np.arange(n) % (largest_label + 1)).astype(np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte.gz", images), (f"{prefix}-labels-idx1-ubyte.gz", labels)):
            (directory / name).write_bytes(gzip.compress(idx_bytes(array), compresslevel=1))


def cifar_bytes(n: int, *, seed: int = 0, largest_label: int = 9) -> bytes:
    """Records in CIFAR-10's binary format: labels in turn, pixels at random."""
    records = np.random.default_rng(seed).integers(0, 256, size=(n, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(n) % (largest_label + 1)
    return records.tobytes()


def write_cifar_like(directory: Path, *, n: int = 10_000) -> None:
    """The six unpacked batches of n records each."""
    for i, member in enumerate(DATASETS["cifar10"].files[0].members):
        path = directory / member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cifar_bytes(n, seed=i))
