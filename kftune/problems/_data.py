"""The data directory: which datasets there are, where their files belong, and how to fetch them.

Layout: ``<data_dir>/<dataset>/<file>``, e.g. ``<data_dir>/mnist/train-images-idx3-ubyte.gz``. A file may also lie there
decompressed, without ``.gz``. Checksums are those of the *decompressed* content: mirrors compress anew. An archive may
also lie there unpacked; its checksum is its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from kftune.errors import DataMissingError, UnknownNameError, UsageError
from kftune.problems.readers.idx import content_md5, file_md5

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class DataFile:
    """One file.

    Attributes:
        name: as it is distributed.
        md5: of its decompressed content; of the file itself if it is an archive.
        members: of an archive, the files that are needed, as they lie in it; none for any other file.
    """

    name: str
    md5: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Files that belong together.

    Attributes:
        name: its directory, and the name for ``kftune data fetch``.
        summary: one line.
        source: as one would cite it, with the licence.
        files: in the order in which its reader takes them.
        urls: where the files are, first choice first; a file's name is appended.
    """

    name: str
    summary: str
    source: str
    files: tuple[DataFile, ...]
    urls: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetStatus:
    """What is there of a dataset. ``missing`` names files that are not; contents are not checked."""

    name: str
    summary: str
    source: str
    directory: Path
    missing: tuple[str, ...]
    size_bytes: int

    @property
    def present(self) -> bool:
        """Whether all files are there."""
        return not self.missing


def _mnist_like(train_images: str, train_labels: str, test_images: str, test_labels: str) -> tuple[DataFile, ...]:
    return (
        DataFile("train-images-idx3-ubyte.gz", train_images),
        DataFile("train-labels-idx1-ubyte.gz", train_labels),
        DataFile("t10k-images-idx3-ubyte.gz", test_images),
        DataFile("t10k-labels-idx1-ubyte.gz", test_labels),
    )


_CIFAR_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")

DATASETS = {
    "mnist": Dataset(
        name="mnist",
        summary="70,000 handwritten digits, 28×28 grey pixels, 10 classes (11 MB)",
        source="LeCun, Bottou, Bengio & Haffner 1998; the authors state no licence, mirrors CC BY-SA 3.0",
        files=_mnist_like(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        urls=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "fashion_mnist": Dataset(
        name="fashion_mnist",
        summary="70,000 pictures of clothes, 28×28 grey pixels, 10 classes (30 MB)",
        source="Xiao, Rasul & Vollgraf 2017 (arXiv:1708.07747), MIT licence",
        files=_mnist_like(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        urls=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
    ),
    "cifar10": Dataset(
        name="cifar10",
        summary="60,000 photographs, 32×32 colour pixels, 10 classes (170 MB)",
        source="Krizhevsky: Learning multiple layers of features from tiny images, 2009; no licence stated",
        files=(
            DataFile(
                "cifar-10-binary.tar.gz",
                "c32a1d4ab5d03f1284b67883e8d87530",
                members=tuple(f"cifar-10-batches-bin/{name}.bin" for name in _CIFAR_BATCHES),
            ),
        ),
        urls=("https://www.cs.toronto.edu/~kriz/",),
    ),
}
"""Every dataset that is read from the data directory, by name."""


_chosen: list[Path] = []
"""Directories of :func:`data_read_from`; the innermost comes last."""


@contextmanager
def data_read_from(directory: Path | None) -> Iterator[None]:
    """Inside the block :func:`default_data_dir` is ``directory``; None changes nothing."""
    if directory is None:
        yield
        return
    _chosen.append(directory)
    try:
        yield
    finally:
        _chosen.pop()


def default_data_dir() -> Path:
    """What :func:`data_read_from` says, else ``KFTUNE_DATA``, else ``data`` in kftune's folder of the user's cache."""
    if _chosen:
        return _chosen[-1]
    named = os.environ.get("KFTUNE_DATA")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("kftune") / "data"


def get_dataset(name: str) -> Dataset:
    """The dataset called ``name``.

    Raises:
        UnknownNameError: if there is none.
    """
    if name not in DATASETS:
        raise UnknownNameError("dataset", name, DATASETS)
    return DATASETS[name]


def list_datasets(data_dir: Path) -> tuple[DatasetStatus, ...]:
    """What is there of every dataset."""
    return tuple(_status(dataset, data_dir) for dataset in DATASETS.values())


def _status(dataset: Dataset, data_dir: Path) -> DatasetStatus:
    directory = data_dir / dataset.name
    found = {file.name: _find(directory, file) for file in dataset.files}
    return DatasetStatus(
        name=dataset.name,
        summary=dataset.summary,
        source=dataset.source,
        directory=directory,
        missing=tuple(name for name, path in found.items() if path is None),
        size_bytes=sum(_size_bytes(path, file) for file, path in zip(dataset.files, found.values(), strict=True)),
    )


def _size_bytes(path: Path | None, file: DataFile) -> int:
    if path is None:
        return 0
    parts = [path / member for member in file.members] if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts)


def locate(dataset: Dataset, data_dir: Path) -> tuple[Path, ...]:
    """Paths of a dataset's files, in its order; for an archive that is only there unpacked, the directory it is in.

    Raises:
        DataMissingError: some are not there; one line with their names, the directory and the remedy.
    """
    directory = data_dir / dataset.name
    found = [_find(directory, file) for file in dataset.files]
    missing = [file.name for file, path in zip(dataset.files, found, strict=True) if path is None]
    if missing:
        raise DataMissingError(
            f"{dataset.name}: {', '.join(missing)} not found in {directory}; run `kftune data fetch {dataset.name}`, "
            "or name the directory that has it with --data-dir or KFTUNE_DATA"
        )
    return tuple(path for path in found if path is not None)


def _find(directory: Path, file: DataFile) -> Path | None:
    if file.members and not (directory / file.name).is_file():
        return directory if all((directory / member).is_file() for member in file.members) else None
    candidates = (directory / file.name, directory / file.name.removesuffix(".gz"))
    return next((path for path in candidates if path.is_file()), None)


def fetch(name: str, data_dir: Path, *, base_url: str | None = None, progress: bool = False) -> tuple[Path, ...]:
    """Download a dataset's files that are not there, or not intact, and check them. Each appears whole or not at all.

    Args:
        name: of the dataset.
        data_dir: the data directory; made if need be.
        base_url: where to get the files from instead of the dataset's own addresses; by default the environment's
            ``KFTUNE_DATA_URL_<NAME>``, if set.
        progress: show a bar per file on standard error.

    Returns:
        The files downloaded; empty if all were there.

    Raises:
        UnknownNameError: no such dataset.
        DataMissingError: a file could not be had: not found, no connection, wrong checksum, nowhere to write.
    """
    dataset = get_dataset(name)
    base_url = base_url or os.environ.get(f"KFTUNE_DATA_URL_{name.upper()}")
    urls = (base_url,) if base_url else dataset.urls
    directory = data_dir / name
    wanted = [file for file in dataset.files if not _is_intact(directory, file)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # In the same directory, so that moving the finished file out is one rename.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as temporary:
            for file in wanted:
                partial = Path(temporary) / file.name
                _download(dataset, file, urls, partial, progress=progress)
                partial.replace(directory / file.name)
    except OSError as error:
        raise DataMissingError(f"cannot write to {directory}: {error.strerror or error}") from error
    return tuple(directory / file.name for file in wanted)


def _is_intact(directory: Path, file: DataFile) -> bool:
    path = _find(directory, file)
    try:
        # What was unpacked has no checksum, and may have been changed.
        return path is not None and path.is_file() and _md5(path, file) == file.md5
    except UsageError:  # corrupt: to be fetched again
        return False


def _md5(path: Path, file: DataFile) -> str:
    """What ``file.md5`` should be.

    Raises:
        UsageError: the file cannot be read or decompressed.
    """
    return file_md5(path) if file.members else content_md5(path)


def _download(dataset: Dataset, file: DataFile, urls: tuple[str, ...], target: Path, *, progress: bool) -> None:
    """Download one file from the first address that has it intact."""
    failures = []
    for base in urls:
        url = f"{base.rstrip('/')}/{file.name}"
        failure = _try_download(url, file, target, progress=progress)
        if failure is None:
            return
        failures.append(f"{url}: {failure}")
    raise DataMissingError(f"{dataset.name}: could not fetch {file.name} ({'; '.join(failures)})")


def _try_download(url: str, file: DataFile, target: Path, *, progress: bool) -> str | None:
    """Download to ``target`` and check; what went wrong in a few words, or None."""
    import pooch
    import requests

    if not url.startswith(("http://", "https://")):
        return "an address must start with http:// or https://"
    with _progress_bar(file.name, shown=progress) as bar:
        downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=_CHUNK_BYTES, timeout=_TIMEOUT_SECONDS)
        try:
            downloader(url, str(target), None)
        except requests.RequestException as error:
            reason = " ".join(str(error).split()).partition(" for url")[0]
            return reason if isinstance(error, requests.HTTPError) else f"{type(error).__name__}: {reason}"
    try:
        md5 = _md5(target, file)
    except UsageError:
        return "the file received is not valid gzip"
    what = "file" if file.members else "content"
    return None if md5 == file.md5 else f"checksum of the {what} is {md5}, expected {file.md5}"


class _Bar:
    """What pooch needs of a progress bar, drawn by rich."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task
        self.total = 0

    def update(self, n_bytes: int) -> None:
        self._progress.update(self._task, total=self.total or None, advance=n_bytes)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop()


@contextmanager
def _progress_bar(name: str, *, shown: bool) -> Iterator[Any]:
    if not shown:
        yield False
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress, progress.add_task(name, total=None))
