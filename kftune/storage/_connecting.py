"""From a database URL to engines, with everything that is particular to SQLite.

SQLite files are in WAL mode, so that readers and the one writer never wait for each other. Our own commits are
synced to the disk before they return (``synchronous=FULL``); Optuna's many small ones are not (``NORMAL``). The log
is sequential: a run that is stored has everything that came before it stored too, and what a power failure can take
is only what a resumed study asks or tells again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy import event

from kftune.errors import StorageError
from kftune.wording import without_password

__all__ = ["Access", "Database", "damage", "optuna_errors", "storage_errors"]

Access: TypeAlias = Literal["create", "write", "read", "read_protected", "read_unchanging"]
"""``create`` makes the file if need be. Reading opens a file that may be written as such, but refuses to write: only so
does SQLite remove its side files again at the end. ``read_protected`` is for a file that may not be written, and
``read_unchanging`` for one in a directory where SQLite cannot share a write-ahead log and nobody writes."""

_BUSY_SECONDS = 60.0
_URI_OPTIONS = {
    "create": "mode=rwc",
    "write": "mode=rw",
    "read": "mode=rw",
    "read_protected": "mode=ro",
    "read_unchanging": "mode=ro&immutable=1",
}


@dataclass(frozen=True)
class Database:
    """A place where a database is or may be.

    Attributes:
        url: parsed and checked.
        path: of a SQLite file; None for a server.
        access: what may be done to it.
    """

    url: sa.URL
    path: Path | None
    access: Access

    @classmethod
    def parse(cls, text: str, access: Access) -> Database:
        """Understand a URL.

        Raises:
            StorageError: if it is none, or names a SQLite database in memory or with options.
        """
        shown = repr(without_password(text))
        try:
            url = sa.make_url(text)
            dialect = url.get_dialect()
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ValueError) as error:
            # What the library says of it may hold any part of the text.
            why = f" ({_one_line(error)})" if isinstance(error, sa.exc.NoSuchModuleError) else ""
            raise StorageError(
                f"storage {shown} is not a database URL such as sqlite:///results.db or "
                f"postgresql://user@host/name{why}"
            ) from None
        if "@" in (url.host or ""):
            raise StorageError(
                f"storage {shown} has an @ too many (within a user name or a password it is written %40)"
            )
        if dialect.name != "sqlite":
            return cls(url, None, access)
        if dialect.driver != "pysqlite":
            raise StorageError(f"storage {shown}: SQLite is used as sqlite:///FILE, not through {dialect.driver}")
        if url.database in (None, "", ":memory:"):
            raise StorageError(f"storage {shown} names no file: a database in memory could not be resumed")
        if url.query:
            raise StorageError(f"storage {shown}: options after '?' are not allowed for SQLite")
        return cls(url, Path(str(url.database)), access)

    @property
    def name(self) -> str:
        """For messages: the path, or the URL without its password."""
        return str(self.path) if self.path is not None else self.url.render_as_string(hide_password=True)

    @property
    def read_only(self) -> bool:
        """Whether nothing may be written."""
        return self.access not in ("create", "write")

    def check_file(self) -> Database:
        """See that the SQLite file can be used as wanted; ``read`` may turn out to be one of the narrower ways.

        Raises:
            StorageError: naming the file and what is wrong with it.
        """
        if self.path is None:
            return self
        if self.path.is_dir():
            raise StorageError(f"{self.path} is a directory, not a database")
        if not self.path.exists():
            return self._check_missing(self.path)
        return self._check_existing(self.path)

    def _check_missing(self, path: Path) -> Database:
        if self.access != "create":
            raise StorageError(f"there is no database {path}")
        if not path.parent.is_dir():
            raise StorageError(f"cannot create {path}: {path.parent} is not a directory")
        if not os.access(path.parent, os.W_OK):
            raise StorageError(f"cannot create {path}: the directory {path.parent.absolute()} is not writable")
        return self

    def _check_existing(self, path: Path) -> Database:
        if not os.access(path, os.R_OK):
            raise StorageError(f"{path} is not readable")
        file_writable, directory_writable = os.access(path, os.W_OK), os.access(path.parent, os.W_OK)
        if self.read_only and not (file_writable and directory_writable):
            shares_log = directory_writable or path.with_name(path.name + "-wal").exists()
            return replace(self, access="read_protected" if shares_log else "read_unchanging")
        if not file_writable:
            raise StorageError(f"{path} is not writable")
        if not directory_writable:
            raise StorageError(f"{path}: SQLite needs to write in its directory {path.parent.absolute()}")
        return self

    def engine(self) -> sa.Engine:
        """An engine for kftune's own transactions, which are real ones for tables and reads too.

        With the execution option ``begin="IMMEDIATE"`` a transaction takes SQLite's write lock at its start, so that
        what it reads first cannot change before it writes.
        """
        # isolation_level=None keeps the driver from its own half-transactions; SQLAlchemy's begin is then SQLite's.
        engine = sa.create_engine(self.url, **self._options(synchronous="FULL", isolation_level=None))
        if self.path is not None:
            event.listen(engine, "begin", _begin)
        return engine

    def optuna_arguments(self) -> dict[str, Any]:
        """``url`` and ``engine_kwargs`` of Optuna's RDBStorage on the same database."""
        # Optuna passes the URL through str.format.
        url = self.url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        return {"url": url, "engine_kwargs": self._options(synchronous="NORMAL", isolation_level="DEFERRED")}

    def _options(self, *, synchronous: str, isolation_level: str | None) -> dict[str, Any]:
        if self.path is None:
            return {"pool_pre_ping": True}
        connect = partial(
            _connect, self.path.absolute(), self.access, synchronous=synchronous, isolation_level=isolation_level
        )
        return {"creator": connect}


@contextmanager
def storage_errors(name: str) -> Iterator[None]:
    """Turn the errors of SQLite, SQLAlchemy and the file system into one :class:`StorageError` line."""
    try:
        yield
    except (StorageInternalError, sa.exc.SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        raise StorageError(f"{name}: {_explained(error)}") from error


@contextmanager
def damage(name: str) -> Iterator[None]:
    """Turn what goes wrong while records are made of stored rows into one :class:`StorageError` line.

    Nothing that was written through kftune is refused here: a disk or a copy has changed it since.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise StorageError(
            f"{name} is damaged: it holds what was not written so ({type(error).__name__}: {_one_line(error)})"
        ) from error


@contextmanager
def optuna_errors(name: str) -> Iterator[None]:
    """The same for what Optuna cannot read or write, and for nothing else."""
    try:
        yield
    except StorageInternalError as error:
        raise StorageError(f"{name}: {_explained(error)}") from error


def _explained(error: BaseException) -> str:
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, sa.exc.StatementError) and error.orig is not None:
        error = error.orig  # without the statement and its parameters
    text = _one_line(error)
    if "file is not a database" in text:
        return "is not a SQLite database"
    if "unable to open database file" in text:
        return "cannot be opened or created; may you write in its directory?"
    return text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _connect(path: Path, access: Access, *, synchronous: str, isolation_level: Any) -> sqlite3.Connection:
    """One connection, configured; fails here, not at its first use, if the file is not a database."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?{_URI_OPTIONS[access]}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=isolation_level,
        check_same_thread=False,  # SQLAlchemy's pool sees to it that one thread has it at a time
    )
    try:
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA schema_version")
        if access == "read":
            connection.execute("PRAGMA query_only=ON")
        if access in ("create", "write"):
            (journal,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if journal != "wal":
                raise sqlite3.OperationalError("the file system does not allow SQLite's write-ahead log")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _begin(connection: sa.Connection) -> None:
    how = connection.get_execution_options().get("begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {how}")
