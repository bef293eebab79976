"""Studies, sessions, runs and their curves."""

import sqlalchemy as sa
from alembic import op

from kftune.storage import _types as types

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "kftune_study",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("study", sa.String(512), nullable=False),
        sa.Column("file_name", sa.String(512), nullable=False),
        sa.Column("problem", sa.String(512), nullable=False),
        sa.Column("optimizer", sa.String(512), nullable=False),
        sa.Column("identity", types.Json, nullable=False),
        sa.Column("config", types.Json, nullable=False),
        sa.Column("space", types.Json, nullable=False),
        sa.Column("n_trials", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_kftune_study"),
        sa.UniqueConstraint("study", name="uq_kftune_study_study"),
    )
    op.create_index("ix_kftune_study_file_name", "kftune_study", ["file_name"])
    op.create_table(
        "kftune_session",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("file_name", sa.String(512), nullable=False),
        sa.Column("started_at", types.UtcDateTime, nullable=False),
        sa.Column("ended_at", types.UtcDateTime, nullable=True),
        sa.Column("host", types.AnyText, nullable=False),
        sa.Column("devices", types.Json, nullable=False),
        sa.Column("versions", types.Json, nullable=False),
        sa.Column("command", types.AnyText, nullable=False),
        sa.Column("ledger", types.Json, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_kftune_session"),
    )
    op.create_index("ix_kftune_session_file_name", "kftune_session", ["file_name"])
    _create_runs()
    op.create_table(
        "kftune_point",
        sa.Column("run_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("train_seconds", types.Real, nullable=False),
        sa.Column("update", sa.BigInteger, nullable=False),
        sa.Column("train_loss", types.Real, nullable=False),
        sa.Column("test_loss", types.Real, nullable=False),
        sa.Column("accuracy", types.Real, nullable=True),
        sa.PrimaryKeyConstraint("run_id", "position", name="pk_kftune_point"),
        sa.ForeignKeyConstraint(["run_id"], ["kftune_run.id"], name="fk_kftune_point_run_id"),
        sqlite_with_rowid=False,
    )


def _create_runs() -> None:
    op.create_table(
        "kftune_run",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("study_id", sa.Integer, nullable=False),
        sa.Column("session_id", sa.Integer, nullable=False),
        sa.Column("trial", sa.Integer, nullable=False),
        sa.Column("repeat", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("params", types.Json, nullable=False),
        sa.Column("device", types.AnyText, nullable=False),
        sa.Column("device_name", types.AnyText, nullable=False),
        sa.Column("started_at", types.UtcDateTime, nullable=False),
        sa.Column("wall_seconds", types.Real, nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("message", types.AnyText, nullable=False),
        sa.Column("train_seconds", types.Real, nullable=False),
        sa.Column("overshoot_seconds", types.Real, nullable=False),
        sa.Column("evaluation_seconds", types.Real, nullable=False),
        sa.Column("setup_seconds", types.Real, nullable=False),
        sa.Column("warmup_seconds", types.Real, nullable=False),
        sa.Column("phase_seconds", types.Json, nullable=False),
        sa.Column("updates", sa.BigInteger, nullable=False),
        sa.Column("examples", sa.BigInteger, nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_kftune_run"),
        sa.ForeignKeyConstraint(["study_id"], ["kftune_study.id"], name="fk_kftune_run_study_id"),
        sa.ForeignKeyConstraint(["session_id"], ["kftune_session.id"], name="fk_kftune_run_session_id"),
        sa.UniqueConstraint("study_id", "trial", "repeat", name="uq_kftune_run_study_id_trial_repeat"),
    )
    op.create_index("ix_kftune_run_session_id", "kftune_run", ["session_id"])


def downgrade() -> None:
    """Back to a database without kftune's tables."""
    for table in ("kftune_point", "kftune_run", "kftune_session", "kftune_study"):
        op.drop_table(table)
