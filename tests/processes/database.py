"""A SQLite file read and changed behind kftune's back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


@contextmanager
def connected(database: Path, *, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection that is committed and closed at the end; ``with sqlite3.connect(…)`` would leave it open."""
    address = f"file:{database}?mode=ro" if read_only else str(database)
    with closing(sqlite3.connect(address, uri=read_only)) as connection, connection:
        yield connection


def count_runs(database: Path) -> int:
    """Runs that are stored; 0 while there is no database, or no table in it."""
    if not database.exists():
        return 0
    try:
        with connected(database, read_only=True) as connection:
            return int(connection.execute("select count(*) from kftune_run").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
