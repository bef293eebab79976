"""What a run's optimizer did to how many of the parameters."""

import sqlalchemy as sa
from alembic import op

from kftune.storage import _types as types

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.add_column("kftune_run", sa.Column("treatments", types.Json, nullable=True))


def downgrade() -> None:
    """Without it."""
    op.drop_column("kftune_run", "treatments")
