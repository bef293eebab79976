"""kftune's schema version: what the database has, what this kftune knows, and the way from one to the other."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from kftune.errors import NewerDatabaseError

__all__ = ["READABLE", "VERSION_TABLE", "head_revision", "stored_revision", "upgrade"]

VERSION_TABLE = "kftune_alembic_version"
"""Optuna keeps its own version in ``alembic_version``, in the same database."""

READABLE = ("0003",)
"""Earlier revisions that are read as they are: later ones only added columns that may be empty."""


def stored_revision(connection: Connection) -> str | None:
    """Revision of the database's kftune tables; None if it has none."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def head_revision() -> str:
    """Newest revision this kftune knows."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def upgrade(connection: Connection, *, name: str) -> None:
    """Bring the database to :func:`head_revision`, inside the caller's transaction.

    Args:
        connection: in a transaction.
        name: the database, for messages.

    Raises:
        NewerDatabaseError: its revision is not one this kftune knows.
    """
    stored = stored_revision(connection)
    if stored == head_revision():
        return
    check_known(stored, name=name)
    command.upgrade(_config(connection), "head")


def downgrade(connection: Connection, revision: str) -> None:
    """Take the database back to ``revision`` (``"base"``: without kftune's tables and what is in them)."""
    command.downgrade(_config(connection), revision)


def check_known(revision: str | None, *, name: str) -> None:
    """Refuse a revision that only a later kftune can have written.

    Raises:
        NewerDatabaseError: if it is none of ours.
    """
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise NewerDatabaseError(
            f"{name} was written by a later kftune (schema {revision}, this one knows up to {head_revision()}); "
            "update kftune to use it"
        )


def _config(connection: Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection})
    # Config values are interpolated: a percent sign in the path would be taken for a placeholder.
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config
