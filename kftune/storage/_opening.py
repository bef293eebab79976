"""Opening a database: is it one of ours, does it have to be made, does its schema have to be brought up to date?"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa
from optuna.storages import RDBStorage

from kftune.errors import StorageError
from kftune.storage import _migrating as migrating
from kftune.storage._connecting import Database, damage, storage_errors

_OPTUNA_TABLE = "studies"


def open_engines(database: Database) -> tuple[sa.Engine, RDBStorage]:
    """kftune's engine and Optuna's storage; the schema is checked and, unless reading only, up to date.

    Raises:
        StorageError: the database is something else, or too old to be read without changing it.
        NewerDatabaseError: it was written by a later kftune.
    """
    engine = database.engine()
    try:
        is_current = _check_schema(database, engine)
        optuna_storage = _optuna_storage(database)
        if not is_current:
            with engine.execution_options(begin="IMMEDIATE").begin() as connection:
                migrating.upgrade(connection, name=database.name)
    except BaseException:
        engine.dispose()
        raise
    return engine, optuna_storage


def make_file(database: Database, path: Path) -> None:
    """Make the SQLite file ``path`` under another name and move it there when it is whole.

    So a kill never leaves half a schema, and two processes that start at once do not make the same tables.

    Raises:
        StorageError: not all of it could be written (there is room for its write-ahead log, but not for the file, say).
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        engine, optuna_storage = open_engines(replace(database, path=unfinished))
        try:
            _empty_log(engine, name=database.name)
        finally:
            dispose(engine, optuna_storage)
        _publish(unfinished, path)
    finally:
        for suffix in ("", "-wal", "-shm"):
            unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)


def _empty_log(engine: sa.Engine, *, name: str) -> None:
    """Move all of SQLite's write-ahead log into the file; closing it would do so too, but not say that it could not."""
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=0")  # nobody else knows of the file
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        row = cursor.fetchone()
    finally:
        connection.close()
    if row is None or row[0] != 0:  # busy
        raise StorageError(f"{name}: SQLite's write-ahead log cannot be moved into the file")


def is_made(url: str) -> bool:
    """Whether a database has kftune's tables already, or they would be made; nothing is written.

    Raises:
        StorageError: they could not be made, or the database is something else.
        NewerDatabaseError: it was written by a later kftune.
    """
    database = Database.parse(url, "create").check_file()
    with storage_errors(database.name), damage(database.name):
        if database.path is not None and not database.path.exists():
            return False
        engine = Database.parse(url, "read").check_file().engine()
        try:
            _check_schema(database, engine)
            with engine.begin() as connection:
                return migrating.stored_revision(connection) is not None
        finally:
            engine.dispose()


def dispose(engine: sa.Engine, optuna_storage: RDBStorage) -> None:
    """Close every connection of both."""
    optuna_storage.remove_session()
    optuna_storage.engine.dispose()
    engine.dispose()


def _check_schema(database: Database, engine: sa.Engine) -> bool:
    """Whether the schema can stay as it is; before anything is written."""
    with engine.begin() as connection:
        stored = migrating.stored_revision(connection)
        tables = sa.inspect(connection).get_table_names()
    migrating.check_known(stored, name=database.name)
    if stored is None and database.access != "create":
        raise StorageError(f"{database.name} holds no kftune studies")
    if stored is None and tables and _OPTUNA_TABLE not in tables:
        raise StorageError(f"{database.name} is the database of another program (it has a table {tables[0]!r})")
    if stored == migrating.head_revision():
        return True
    if database.read_only and stored in migrating.READABLE:
        return True
    if database.read_only:
        raise StorageError(
            f"{database.name} was written by an earlier kftune (schema {stored}) and is not changed by reading it; "
            "`kftune resume` brings it up to date"
        )
    return False


def _optuna_storage(database: Database) -> RDBStorage:
    try:
        return RDBStorage(**database.optuna_arguments(), skip_table_creation=database.read_only)
    except RuntimeError as error:  # Optuna's schema is newer or older than this Optuna
        raise StorageError(f"{database.name}: {' '.join(str(error).split())}") from error


def _publish(made: Path, path: Path) -> None:
    """Give a finished file its name, unless somebody else was faster."""
    try:
        os.link(made, path)
    except FileExistsError:
        return
    except OSError:
        # A file system without hard links: look, then move.
        if not path.exists():
            made.replace(path)
    if os.name == "posix":
        # The file is on the disk; its name must be, too, before anyone relies on it.
        directory = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some file systems cannot sync a directory
            os.fsync(directory)
        os.close(directory)
