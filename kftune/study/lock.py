"""One runner per database: a lock beside the SQLite file, which the operating system drops when its holder dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from kftune.errors import StudyLockedError

__all__ = ["sole_runner"]


@contextmanager
def sole_runner(database: Path | None) -> Iterator[None]:
    """Hold the lock of a database for the time of the ``with`` block.

    Args:
        database: the SQLite file; None (a database server) locks nothing.

    Raises:
        StudyLockedError: another process holds it; names that process.
    """
    if database is None:
        yield
        return
    path = database.with_name(f"{database.name}.lock")
    owner = database.with_name(f"{database.name}.lock-owner")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        process = owner.read_text().strip() if owner.exists() else "unknown"
        raise StudyLockedError(f"{database}: another kftune (process {process}) is running studies in it now") from None
    try:
        # The note is for messages only: a disk that is full or read-only by now shall not hide what happened.
        with suppress(OSError):
            owner.write_text(str(os.getpid()))
        yield
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()
