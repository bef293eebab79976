"""Downloading the files of a dataset into the data directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kftune.errors import DataMissingError, UsageError
from kftune.problems.data.datasets import DataFile, Dataset, get_dataset
from kftune.problems.data.directory import find
from kftune.problems.data.files import content_md5, file_md5

__all__ = ["fetch"]

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 16


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
    path = find(directory, file)
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
