"""How many training examples a study's problem has."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this revision."""
    op.add_column("kftune_study", sa.Column("n_train", sa.Integer, nullable=True))


def downgrade() -> None:
    """Without them."""
    op.drop_column("kftune_study", "n_train")
