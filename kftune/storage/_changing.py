"""Taking studies and trials out of a database, renaming them, and putting trials back to where they are made again.

Optuna's own tables are changed in the same transaction as kftune's, so that a kill leaves both or neither. What hangs
on one of its studies or trials is found by the foreign keys: its tables differ from version to version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy import orm

from kftune.errors import StorageError
from kftune.results import Outcome
from kftune.storage import models
from kftune.storage.records import Purpose

__all__ = ["empty_trials", "remove_studies", "rename_file", "supersede_crashed"]

_OF_NO_FILE = ""

_STUDIES = sa.table("studies", sa.column("study_id"), sa.column("study_name"))
_TRIALS = sa.table(
    "trials",
    *(sa.column(name) for name in ("trial_id", "study_id", "number", "datetime_start", "datetime_complete")),
    sa.column("state", sa.Enum(TrialState)),
)


def remove_studies(session: orm.Session, names: Sequence[str]) -> None:
    """Delete studies with their trials, runs and curves, and the sessions of a study file of which none is left.

    A session that made runs which another file's study has taken over is kept, without a name.
    """
    rows = session.execute(
        sa.select(models.Study.id, models.Study.file_name).where(models.Study.study.in_(names))
    ).all()
    _remove_runs(session, models.Run.study_id.in_([row.id for row in rows]))
    session.execute(sa.delete(models.Study).where(models.Study.study.in_(names)))
    ids = sa.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name.in_(names))
    _remove_hanging(session, "trials", sa.select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id.in_(ids)))
    session.execute(sa.delete(_TRIALS).where(_TRIALS.c.study_id.in_(ids)))
    _remove_hanging(session, "studies", ids)
    session.execute(sa.delete(_STUDIES).where(_STUDIES.c.study_name.in_(names)))
    for file_name in dict.fromkeys(row.file_name for row in rows):
        if session.scalar(sa.select(models.Study.id).where(models.Study.file_name == file_name)) is None:
            named = models.Session.file_name == file_name
            session.execute(sa.update(models.Session).where(named).values(file_name=_OF_NO_FILE))
    needed = sa.select(models.Run.session_id)
    of_none = models.Session.file_name == _OF_NO_FILE
    session.execute(sa.delete(models.Session).where(of_none, models.Session.id.not_in(needed)))


def rename_file(session: orm.Session, old: str, new: str, *, name: str) -> None:
    """Give a study file's studies and sessions another name.

    Args:
        session: in a transaction.
        old: name of the study file.
        new: likewise.
        name: the database, for messages.

    Raises:
        StorageError: it holds studies of the new name already, kftune's or Optuna's.
    """
    rows = session.scalars(sa.select(models.Study).where(models.Study.file_name == old)).all()
    names = {row.study: f"{new}{row.study.removeprefix(old)}" for row in rows}
    taken = [
        session.scalar(sa.select(models.Study.study).where(models.Study.file_name == new)),
        session.scalar(sa.select(_STUDIES.c.study_name).where(_STUDIES.c.study_name.in_(list(names.values())))),
    ]
    for found in taken:
        if found is not None:
            raise StorageError(f"{name} holds a study {found!r} already; choose another name")
    for before, after in names.items():
        session.execute(sa.update(_STUDIES).where(_STUDIES.c.study_name == before).values(study_name=after))
    for row in rows:
        row.study, row.file_name, row.config = names[row.study], new, {**row.config, "name": new}
    session.execute(sa.update(models.Session).where(models.Session.file_name == old).values(file_name=new))


def empty_trials(session: orm.Session, study: str, numbers: Sequence[int]) -> None:
    """Forget what trials were, of Optuna's tables too, and leave their places to be asked for again."""
    study_id = session.scalars(sa.select(models.Study.id).where(models.Study.study == study)).one()
    _remove_runs(session, sa.and_(models.Run.study_id == study_id, models.Run.trial.in_(numbers)))
    _remove_hanging(session, "trials", sa.select(_TRIALS.c.trial_id).where(*_numbered(study, numbers)))
    emptied = {"state": TrialState.WAITING, "datetime_start": None, "datetime_complete": None}
    session.execute(sa.update(_TRIALS).where(*_numbered(study, numbers)).values(emptied))


def supersede_crashed(session: orm.Session, study: str, purpose: Purpose) -> int:
    """Have the crashed runs of a study made again: they count no more, and their trials are unsettled.

    Returns:
        How many these runs are.
    """
    study_id = sa.select(models.Study.id).where(models.Study.study == study).scalar_subquery()
    crashed = sa.select(models.Run).where(
        models.Run.study_id == study_id,
        models.Run.purpose == purpose,
        models.Run.outcome == Outcome.CRASHED.value,
        models.Run.superseded.is_(False),
    )
    runs = session.scalars(crashed).all()
    for run in runs:
        run.superseded = True
    if purpose == "search":
        # A trial one of whose runs has crashed has no value to take back.
        numbers = sorted({run.trial for run in runs})
        again = {"state": TrialState.RUNNING, "datetime_complete": None}
        session.execute(sa.update(_TRIALS).where(*_numbered(study, numbers)).values(again))
    return len(runs)


def _numbered(study: str, numbers: Sequence[int]) -> tuple[sa.ColumnElement[bool], ...]:
    of_study = sa.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == study).scalar_subquery()
    return _TRIALS.c.study_id == of_study, _TRIALS.c.number.in_(numbers)


def _remove_runs(session: orm.Session, where: sa.ColumnElement[bool]) -> None:
    session.execute(sa.delete(models.Point).where(models.Point.run_id.in_(sa.select(models.Run.id).where(where))))
    session.execute(sa.delete(models.Run).where(where))


def _remove_hanging(session: orm.Session, table: str, ids: sa.Select[tuple[int]]) -> None:
    """Delete the rows of all tables that refer to some of a table's."""
    for other, column in _referring(session.connection(), table):
        session.execute(sa.delete(other).where(column.in_(ids)))


def _referring(connection: sa.Connection, table: str) -> Iterator[tuple[sa.TableClause, sa.ColumnClause[int]]]:
    inspector = sa.inspect(connection)
    for other in inspector.get_table_names():
        for key in inspector.get_foreign_keys(other):
            if key["referred_table"] == table and other != "trials":
                (name,) = key["constrained_columns"]
                column: sa.ColumnClause[int] = sa.column(name)
                yield sa.table(other, column), column
