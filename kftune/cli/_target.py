"""Which database, and which study file in it, a command is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kftune.errors import ConfigError, StorageError, UnknownNameError

if TYPE_CHECKING:
    from kftune.storage.repository import Repository

__all__ = ["Target", "find_target", "given_storage", "open_to_read"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A database's URL, and the name of a study file in it (None: all of them)."""

    storage: str
    file_name: str | None = None

    def file_names(self, repository: Repository) -> list[str]:
        """The study files that are meant, by name.

        Raises:
            UnknownNameError: the named one is not stored.
            StorageError: nothing is stored.
        """
        available = repository.file_names()
        if not available:
            raise StorageError(f"{repository.name} holds no studies yet")
        if self.file_name is None:
            return available
        if self.file_name not in available:
            raise UnknownNameError("study", self.file_name, available)
        return [self.file_name]


def find_target(study: str | None, storage: str | None) -> Target:
    """What the arguments of a command mean.

    Args:
        study: a study file, a study's name, a database file or nothing.
        storage: a database's URL or file, or nothing.

    Raises:
        ConfigError: the study file cannot be read, or the storage is no database.
        StorageError: no database was named, and not exactly one is in the current directory.
    """
    from kftune.study.config import locate_study, storage_url

    url = given_storage(storage)
    if study is not None and study.endswith((".yaml", ".yml")):
        located = locate_study(study)
        return Target(storage=url or located.storage, file_name=located.name)
    if study is not None and url is None and study.endswith(".db"):
        return Target(storage=storage_url(study))
    if url is None:
        url = storage_url(_only_database(study))
    return Target(storage=url, file_name=study)


def given_storage(storage: str | None) -> str | None:
    """The URL that ``--storage`` means; None if it was not given.

    Raises:
        ConfigError: it is neither a file name nor a database's URL.
    """
    from kftune.study.config import storage_url

    try:
        return None if storage is None else storage_url(storage)
    except ValueError as error:
        raise ConfigError(str(error), source="--storage") from None


@contextmanager
def open_to_read(storage: str) -> Iterator[Repository]:
    """The database, for reading only; it is neither made nor changed.

    Raises:
        StorageError: it is not there or cannot be read.
    """
    from kftune.storage.repository import Repository

    with Repository.open(storage, read_only=True) as repository:
        yield repository


def _only_database(name: str | None) -> str:
    """The database file in the current directory; of several the one called like the study."""
    found = sorted(path.name for path in Path().glob("*.db"))
    if len(found) == 1:
        return found[0]
    if name is not None and f"{name}.db" in found:
        return f"{name}.db"
    if not found:
        raise StorageError("there is no database (*.db) in this directory; name the study file, or use --storage")
    raise StorageError(f"several databases are in this directory ({', '.join(found)}); choose one with --storage")
