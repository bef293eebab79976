from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import make_url
from sqlalchemy.schema import CreateTable

from kftune.storage import _migrating as migrating
from kftune.storage._connecting import Database
from kftune.storage.models import Base
from kftune.storage.repository import Repository
from tests.processes.database import connected
from tests.storage.builders import run_record, session_record, study_record


@pytest.fixture
def engine(path: Path, url: str) -> Iterator[sa.Engine]:
    engine = Database.parse(url, "create").engine()
    yield engine
    engine.dispose()


def compared(connection: sa.Connection) -> list[object]:
    """Differences between the database and the models, as Alembic sees them; its own table aside."""
    options = {"include_name": lambda name, kind, _: kind != "table" or name != migrating.VERSION_TABLE}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))


def test_the_migrations_lead_to_the_models(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        migrating.upgrade(connection, name="a database")
        assert migrating.stored_revision(connection) == migrating.head_revision()
        assert compared(connection) == []


def test_a_column_that_no_migration_makes_would_be_noticed(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        migrating.upgrade(connection, name="a database")
        connection.execute(sa.text("ALTER TABLE kftune_run DROP COLUMN examples"))
        connection.execute(sa.text("DROP INDEX ix_kftune_run_session_id"))
        assert len(compared(connection)) == 2


def test_upgrading_twice_changes_nothing(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        migrating.upgrade(connection, name="a database")
        before = connection.execute(sa.text("SELECT sql FROM sqlite_master")).all()
        migrating.upgrade(connection, name="a database")
        assert connection.execute(sa.text("SELECT sql FROM sqlite_master")).all() == before


def test_an_upgrade_is_made_whole_or_not_at_all(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        transaction = connection.begin()
        migrating.upgrade(connection, name="a database")
        transaction.rollback()
        assert sa.inspect(connection).get_table_names() == []


def test_the_first_revision_can_be_taken_back(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        migrating.upgrade(connection, name="a database")
        migrating.downgrade(connection, "base")
        assert sa.inspect(connection).get_table_names() == [migrating.VERSION_TABLE]


def test_runs_of_the_first_revision_survive_the_second(path: Path, url: str) -> None:
    with Repository.open(url) as repository:
        repository.register([study_record()])
        record = run_record(repository.begin_session(session_record()))
        repository.add_run(record, session_ledger={"wall": 1.0})
        repository.add_run(replace(record, purpose="confirm"), session_ledger={"wall": 2.0})
    engine = Database.parse(url, "write").engine()
    with engine.begin() as connection:
        migrating.downgrade(connection, "0001")
        assert connection.execute(sa.text("SELECT count(*) FROM kftune_run")).scalar() == 1
    engine.dispose()
    with Repository.open(url) as repository:
        (run,) = repository.runs()
        bare = tuple(replace(point, readings=None) for point in record.result.curve)
        assert run == replace(record, result=replace(record.result, calibration=None, curve=bare, treatments=None))
        assert repository.runs(purpose="confirm") == []
    with connected(path) as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_studies_of_the_second_revision_learn_their_training_sets(url: str) -> None:
    known = study_record(n_train=1437)
    with Repository.open(url) as repository:
        repository.register([known])
    engine = Database.parse(url, "write").engine()
    with engine.begin() as connection:
        migrating.downgrade(connection, "0002")
    engine.dispose()
    with Repository.open(url) as repository:
        assert repository.studies() == [replace(known, n_train=None)]
        repository.register([known])
        assert repository.studies() == [known]


def test_runs_of_the_third_revision_have_no_treatments_and_can_be_read_as_they_are(url: str) -> None:
    with Repository.open(url) as repository:
        repository.register([study_record()])
        record = run_record(repository.begin_session(session_record()))
        repository.add_run(record, session_ledger={"wall": 1.0})
        assert repository.runs() == [record]
    engine = Database.parse(url, "write").engine()
    with engine.begin() as connection:
        migrating.downgrade(connection, "0003")
    bare = replace(record, result=replace(record.result, treatments=None))
    with Repository.open(url, read_only=True) as repository:
        assert repository.runs() == [bare]
    with engine.begin() as connection:
        assert migrating.stored_revision(connection) == "0003"
    engine.dispose()
    with Repository.open(url) as repository:
        assert repository.runs() == [bare]
        again = replace(record, trial=1)
        repository.add_run(again, session_ledger={"wall": 2.0})
        assert repository.runs() == [bare, again]


@pytest.mark.parametrize("table", Base.metadata.sorted_tables, ids=lambda table: table.name)
def test_the_tables_can_be_made_in_postgresql(table: sa.Table) -> None:
    statement = str(CreateTable(table).compile(dialect=make_url("postgresql://").get_dialect()()))
    assert f"CREATE TABLE {table.name}" in statement
    assert "ROWID" not in statement
