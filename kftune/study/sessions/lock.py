"""One runner per SQLite database: a lock beside the file, which the operating system drops when its holder dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kftune.errors import StorageError, StudyLockedError

__all__ = ["sole_runner"]


@contextmanager
def sole_runner(database: Path | None) -> Iterator[None]:
    """Hold the lock of a database for the time of the ``with`` block.

    Args:
        database: the SQLite file; None (a database server) locks nothing, which its users are told.

    Raises:
        StudyLockedError: another process holds it; names that process.
        StorageError: the lock file cannot be opened.
    """
    if database is None:
        yield
        return
    path = database.with_name(f"{database.name}.lock")
    owner = database.with_name(f"{database.name}.lock-owner")
    lock = FileLock(path, mode=0o666)  # others who may write the database shall be able to take it, too
    try:
        lock.acquire(timeout=0)
    except Timeout:
        process = "unknown"
        with suppress(OSError):
            process = owner.read_text().strip()
        raise StudyLockedError(f"{database}: another kftune (process {process}) is running studies in it now") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; it keeps two runners of a database apart") from error
    try:
        # The note is for messages only: a disk that is full or read-only by now shall not hide what happened.
        with suppress(OSError):
            owner.write_text(str(os.getpid()))
        yield
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()
