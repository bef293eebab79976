"""CIFAR-10's reader: layout, normalisation, and what it refuses; with few records where they are enough."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import kftune.problems.cifar as cifar
import kftune.problems.readers.cifar as reader
from kftune.errors import DataMissingError, UsageError
from kftune.problems import DATASETS, PROBLEMS, Problem
from tests.problems.conftest import cifar_bytes, write_cifar_like

CPU = torch.device("cpu")
N = 20
(FILE,) = DATASETS["cifar10"].files


def load(data_dir: Path, dtype: torch.dtype = torch.float64) -> Problem:
    return cifar.load_resnet(device=CPU, dtype=dtype, data_dir=data_dir, depth=8, width=4)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with batches of 20 records, and a reader that expects them."""
    monkeypatch.setattr(reader, "N_RECORDS", N)
    monkeypatch.setattr(cifar, "N_RECORDS", N)
    write_cifar_like(tmp_path / "cifar10", n=N)
    return tmp_path


def pack(data_dir: Path, *, left_out: str = "") -> Path:
    """Put the unpacked batches into the archive, and remove them."""
    directory = data_dir / "cifar10"
    with tarfile.open(directory / FILE.name, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-bin/readme.html"))
        for member in reversed(FILE.members):  # in whatever order
            if member != left_out:
                content = (directory / member).read_bytes()
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            (directory / member).unlink()
    return directory / FILE.name


def test_every_channel_is_normalised_over_the_training_set(small: Path) -> None:
    problem = load(small)
    records = np.concatenate([np.frombuffer(cifar_bytes(N, seed=i), np.uint8).reshape(N, 3073) for i in range(6)])
    planes = records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float64)
    mean = planes[: 5 * N].mean(axis=(0, 2, 3), keepdims=True)
    deviation = planes[: 5 * N].std(axis=(0, 2, 3), keepdims=True)
    expected = torch.tensor((planes - mean) / deviation)
    torch.testing.assert_close(problem.train.inputs, expected[: 5 * N], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(problem.test.inputs, expected[5 * N :], rtol=1e-12, atol=1e-12)
    assert problem.train.targets.tolist() == [k % 10 for k in range(N)] * 5
    single = load(small, torch.float32)
    assert single.test.inputs.dtype == torch.float32
    torch.testing.assert_close(single.test.inputs.double(), problem.test.inputs, rtol=1e-5, atol=1e-6)


def test_archive_and_unpacked_files_are_the_same(small: Path) -> None:
    unpacked = load(small)
    pack(small)
    cifar._tensors.cache_clear()
    archived = load(small)
    assert torch.equal(unpacked.train.inputs, archived.train.inputs)
    assert torch.equal(unpacked.test.targets, archived.test.targets)


def shorten(directory: Path) -> Path:
    path = directory / FILE.members[2]
    path.write_bytes(path.read_bytes()[:-1])
    return path


def mislabel(directory: Path) -> Path:
    path = directory / FILE.members[5]
    path.write_bytes(cifar_bytes(N, largest_label=10))
    return path


def cut_archive(directory: Path) -> Path:
    path = pack(directory.parent)
    path.write_bytes(path.read_bytes()[:20_000])
    return path


def no_archive(directory: Path) -> Path:
    path = directory / FILE.name
    path.write_bytes(gzip.compress(b"<html>not found</html>"))
    return path


def incomplete_archive(directory: Path) -> Path:
    return pack(directory.parent, left_out=FILE.members[5])


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (shorten, r"20 records of 3073 bytes are 61460 bytes, it has 61459"),
        (mislabel, r"labels must be below 10, the largest is 10"),
        (cut_archive, r"it cannot be unpacked"),
        (no_archive, r"it cannot be unpacked"),
        (incomplete_archive, r"it has no cifar-10-batches-bin/test_batch.bin"),
    ],
)
def test_corrupt_files_are_refused_by_name(small: Path, spoil: Callable[[Path], Path], why: str) -> None:
    path = spoil(small / "cifar10")
    with pytest.raises(UsageError, match=why) as caught:
        load(small)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "kftune data fetch" in str(caught.value)


def test_what_is_unpacked_in_part_is_missing(small: Path) -> None:
    (small / "cifar10" / FILE.members[3]).unlink()
    with pytest.raises(DataMissingError, match=r"cifar10: cifar-10-binary.tar.gz not found in"):
        load(small)


def test_the_photographs_can_be_learnt(cifar_dir: Path) -> None:
    problem = PROBLEMS.get("cifar10_resnet20").load(
        device=CPU, dtype=torch.float32, data_dir=cifar_dir, depth=8, width=4
    )
    assert torch.bincount(problem.train.targets).tolist() == [5000] * 10
    assert torch.bincount(problem.test.targets).tolist() == [1000] * 10
    deviation, mean = torch.std_mean(problem.train.inputs, dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(deviation, torch.ones(3), rtol=1e-3, atol=0)
    torch.manual_seed(0)
    model = problem.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for k in range(100):
        batch = slice(64 * k, 64 * (k + 1))
        optimizer.zero_grad()
        torch.autograd.backward(problem.loss(model(problem.train.inputs[batch]), problem.train.targets[batch]))
        optimizer.step()
    model.eval()
    with torch.no_grad():
        share = problem.accuracy(model(problem.test.inputs[:1000]), problem.test.targets[:1000])
    assert share > 0.2  # chance is 0.1; 0.28 was seen
