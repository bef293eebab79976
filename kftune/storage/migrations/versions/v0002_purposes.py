"""Runs that confirm, runs that were made again, the machine's speed, optimizers' readings, micro-batch sizes."""

import sqlalchemy as sa
from alembic import op

from kftune.storage import _types as types

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_OLD_KEY = ("study_id", "trial", "repeat")
_NEW_KEY = ("study_id", "purpose", "budget_factor", "trial", "repeat", "attempt")
_NEW_NAME = f"uq_kftune_run_{'_'.join(_NEW_KEY)}"
_OLD_NAME = f"uq_kftune_run_{'_'.join(_OLD_KEY)}"


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "kftune_micro_batch",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("key", types.AnyText, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("found_at", types.UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_kftune_micro_batch"),
        sa.UniqueConstraint("key", name="uq_kftune_micro_batch_key"),
    )
    op.add_column("kftune_point", sa.Column("readings", types.Json, nullable=True))
    # SQLite can change a table's constraints only by copying it, and other tables' rows refer to this one's: the
    # points are set aside meanwhile.
    _set_points_aside()
    with op.batch_alter_table("kftune_run") as batch:
        batch.add_column(sa.Column("purpose", sa.String(16), nullable=False, server_default="search"))
        batch.add_column(sa.Column("budget_factor", types.Real, nullable=False, server_default="1.0"))
        batch.add_column(sa.Column("superseded", sa.Boolean, nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("calibration", types.Json, nullable=True))
        batch.drop_constraint(_OLD_NAME, type_="unique")
        batch.create_unique_constraint(_NEW_NAME, list(_NEW_KEY))
    _bring_points_back()


def downgrade() -> None:
    """Back to search runs only, each of them once."""
    op.execute("DELETE FROM kftune_point WHERE run_id IN (SELECT id FROM kftune_run WHERE purpose <> 'search')")
    op.execute("DELETE FROM kftune_point WHERE run_id IN (SELECT id FROM kftune_run WHERE superseded)")
    op.execute("DELETE FROM kftune_run WHERE purpose <> 'search' OR superseded")
    _set_points_aside()
    with op.batch_alter_table("kftune_run") as batch:
        batch.drop_constraint(_NEW_NAME, type_="unique")
        batch.create_unique_constraint(_OLD_NAME, list(_OLD_KEY))
        for column in ("purpose", "budget_factor", "superseded", "calibration"):
            batch.drop_column(column)
    _bring_points_back()
    op.drop_column("kftune_point", "readings")
    op.drop_table("kftune_micro_batch")


def _set_points_aside() -> None:
    op.execute("CREATE TABLE kftune_point_aside AS SELECT * FROM kftune_point")
    op.execute("DELETE FROM kftune_point")


def _bring_points_back() -> None:
    op.execute("INSERT INTO kftune_point SELECT * FROM kftune_point_aside")
    op.execute("DROP TABLE kftune_point_aside")
