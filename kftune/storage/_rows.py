"""Between records and table rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from kftune.results import Calibration, CurvePoint, Outcome, RunResult
from kftune.storage import models
from kftune.storage._types import Json
from kftune.storage.records import RunRecord, SessionRecord, StudyRecord

# Optuna's tables, of which only these columns are touched: it has no way of its own to take a report back.
_REPORTS = sa.table("trial_intermediate_values", sa.column("trial_id"))
_ATTRIBUTES = sa.table("trial_system_attributes", sa.column("trial_id"), sa.column("key"))
_RUNG = "completed_rung_"  # of successive halving and hyperband

_RESULT_COLUMNS = (
    "message",
    "train_seconds",
    "overshoot_seconds",
    "evaluation_seconds",
    "setup_seconds",
    "warmup_seconds",
    "phase_seconds",
    "updates",
    "examples",
    "peak_memory_bytes",
    "device_name",
    "treatments",
)
_RUN_COLUMNS = (
    "study",
    "trial",
    "repeat",
    "seed",
    "params",
    "session_id",
    "started_at",
    "wall_seconds",
    "attempt",
    "device",
    "purpose",
    "budget_factor",
    "superseded",
)


def put_study(session: orm.Session, record: StudyRecord) -> None:
    """Insert a study, or update the stored one of its name."""
    row = session.scalar(sa.select(models.Study).where(models.Study.study == record.study))
    if row is None:
        row = models.Study(study=record.study)
        session.add(row)
    row.file_name = record.file_name
    row.problem = record.problem
    row.optimizer = record.optimizer
    row.identity = dict(record.identity)
    row.config = dict(record.config)
    row.space = dict(record.space)
    row.n_trials = record.n_trials
    row.n_train = record.n_train


def session_row(record: SessionRecord) -> models.Session:
    """A session, ready to be added."""
    return models.Session(
        file_name=record.file_name,
        started_at=record.started_at,
        ended_at=record.ended_at,
        host=record.host,
        devices=record.devices,
        versions=record.versions,
        command=record.command,
        ledger=record.ledger,
    )


def run_row(record: RunRecord, study_id: int) -> models.Run:
    """A run with its points, ready to be added."""
    result = record.result
    of_run = {name: getattr(record, name) for name in _RUN_COLUMNS if name != "study"}
    of_result = {name: getattr(result, name) for name in _RESULT_COLUMNS}
    points = [
        models.Point(
            position=position,
            train_seconds=point.train_seconds,
            update=point.update,
            train_loss=point.train_loss,
            test_loss=point.test_loss,
            accuracy=point.accuracy,
            readings=None if point.readings is None else dict(point.readings),
        )
        for position, point in enumerate(result.curve)
    ]
    calibration = None if result.calibration is None else asdict(result.calibration)
    return models.Run(
        study_id=study_id,
        outcome=result.outcome.value,
        calibration=calibration,
        points=points,
        **of_run,
        **of_result,
    )


def delete_reports(session: orm.Session, trial_id: int) -> None:
    """Delete what an Optuna trial that is not finished has reported, and the rungs that it has reached."""
    session.execute(sa.delete(_REPORTS).where(_REPORTS.c.trial_id == trial_id))
    is_rung = _ATTRIBUTES.c.key.startswith(_RUNG, autoescape=True)
    session.execute(sa.delete(_ATTRIBUTES).where(_ATTRIBUTES.c.trial_id == trial_id, is_rung))


def run_columns(connection: sa.Connection) -> list[sa.ColumnElement[Any]]:
    """Of the table of runs; in a database of an earlier revision, nothing in place of those it lacks."""
    table = models.Run.__table__
    there = {column["name"] for column in sa.inspect(connection).get_columns(models.Run.__tablename__)}
    return [column if column.name in there else sa.null().label(column.name) for column in table.columns]


_REQUIRED = {
    table: tuple(column.name for column in table.__table__.columns if not column.nullable)
    for table in (models.Study, models.Session, models.Run)
}


_JSON_FORMS = {
    table: {c.name: list if c.name == "devices" else dict for c in table.__table__.columns if isinstance(c.type, Json)}
    for table in _REQUIRED
}


def check_whole(row: sa.RowMapping, table: type[models.Study | models.Session | models.Run]) -> None:
    """See that nothing is empty that is never stored so, and that JSON holds what it was made of.

    Raises:
        ValueError: it is.
    """
    for name in _REQUIRED[table]:
        if row.get(name, "") is None:
            raise ValueError(f"{table.__tablename__}.{name} is empty")
    for name, form in _JSON_FORMS[table].items():
        if row.get(name) is not None and not isinstance(row[name], form):
            raise ValueError(f"{table.__tablename__}.{name} is no {'list' if form is list else 'mapping'}")


def run_record(row: sa.RowMapping, curve: tuple[CurvePoint, ...]) -> RunRecord:
    """A run from its row (the study's name included) and its points.

    Raises:
        ValueError: the row cannot have been stored so.
    """
    check_whole(row, models.Run)
    result = RunResult(
        outcome=Outcome(row["outcome"]),
        curve=curve,
        calibration=_calibration(row["calibration"]),
        **{name: row[name] for name in _RESULT_COLUMNS},
    )
    return RunRecord(result=result, **{name: row[name] for name in _RUN_COLUMNS})


def _calibration(stored: dict[str, Any] | None) -> Calibration | None:
    if stored is None:
        return None
    return Calibration(
        train_seconds=tuple(stored["train_seconds"]),
        seconds=tuple(stored["seconds"]),
        reference=stored["reference"],
    )
