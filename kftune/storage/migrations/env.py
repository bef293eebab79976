"""Run by Alembic: brings kftune's tables (not Optuna's) to the wanted revision on the connection it was handed."""

from alembic import context
from sqlalchemy import Connection

from kftune.storage._migrating import VERSION_TABLE
from kftune.storage.models import Base


def migrate(connection: Connection) -> None:
    """Apply the revisions inside the caller's transaction, so that a kill leaves all of them or none."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        render_as_batch=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


migrate(context.config.attributes["connection"])
