"""The data directory: where the files of datasets belong, and what is there of them.

Layout: ``<data_dir>/<dataset>/<file>``, e.g. ``<data_dir>/mnist/train-images-idx3-ubyte.gz``. A file may also lie there
decompressed, without ``.gz``. An archive may also lie there unpacked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from kftune.errors import DataMissingError
from kftune.problems.data.datasets import DATASETS, DataFile, Dataset

__all__ = ["DatasetStatus", "data_read_from", "default_data_dir", "find", "list_datasets", "locate"]


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


def list_datasets(data_dir: Path) -> tuple[DatasetStatus, ...]:
    """What is there of every dataset."""
    return tuple(_status(dataset, data_dir) for dataset in DATASETS.values())


def _status(dataset: Dataset, data_dir: Path) -> DatasetStatus:
    directory = data_dir / dataset.name
    found = {file.name: find(directory, file) for file in dataset.files}
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
    found = [find(directory, file) for file in dataset.files]
    missing = [file.name for file, path in zip(dataset.files, found, strict=True) if path is None]
    if missing:
        raise DataMissingError(
            f"{dataset.name}: {', '.join(missing)} not found in {directory}; run `kftune data fetch {dataset.name}`, "
            "or name the directory that has it with --data-dir or KFTUNE_DATA"
        )
    return tuple(path for path in found if path is not None)


def find(directory: Path, file: DataFile) -> Path | None:
    """The file, or the directory in which the archive was unpacked; None if it is not there."""
    if file.members and not (directory / file.name).is_file():
        return directory if all((directory / member).is_file() for member in file.members) else None
    candidates = (directory / file.name, directory / file.name.removesuffix(".gz"))
    return next((path for path in candidates if path.is_file()), None)
