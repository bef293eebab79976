"""Where the real data are, and small IDX files for the tests that need none."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kftune.problems import DATASETS

_REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """A data directory with the real MNIST."""
    data_dir = Path(os.environ.get("KFTUNE_TEST_DATA", _REPOSITORY.parent / "shared" / "data"))
    if not all((data_dir / "mnist" / file.name).is_file() for file in DATASETS["mnist"].files):
        pytest.skip(f"no MNIST in {data_dir} (KFTUNE_TEST_DATA)")
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
