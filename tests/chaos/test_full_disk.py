"""A database that is made while the disk fills up is whole, or is not there."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kftune.errors import StorageError
from kftune.storage import _opening
from kftune.storage.repository import Repository


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(n_bytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(place)]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no file system can be mounted here")
        return place

    yield mount
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


@pytest.mark.parametrize("n_bytes", [4096 * pages for pages in (8, 40, 60, 80, 90, 100, 110, 120, 130, 200)])
def test_a_disk_that_is_full_before_the_database_is_made(disk: Callable[[int], Path], n_bytes: int) -> None:
    path = disk(n_bytes) / "new.db"
    try:
        with Repository.open(f"sqlite:///{path}"):
            pass
    except StorageError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert "full" in said
        assert not list(path.parent.iterdir())
        return
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        assert connection.execute("select count(*) from kftune_run").fetchone() == (0,)


def test_a_log_that_cannot_be_moved_into_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of an earlier state keeps it from that."""
    readers: list[sqlite3.Connection] = []
    make = _opening.open_engines

    def with_a_reader(database: Any) -> Any:
        reader = sqlite3.connect(database.path, isolation_level=None)
        readers.append(reader)
        reader.execute("pragma journal_mode=wal")
        reader.execute("begin")
        reader.execute("select count(*) from sqlite_master").fetchone()
        return make(database)

    monkeypatch.setattr(_opening, "open_engines", with_a_reader)
    with pytest.raises(StorageError, match="cannot be moved into the file"):
        Repository.open(f"sqlite:///{tmp_path / 'new.db'}")
    for reader in readers:
        reader.close()
    assert not list(tmp_path.glob("new.db*"))
