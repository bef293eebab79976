"""Everything there is to read in a database."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from optuna.storages import BaseStorage, RDBStorage, get_storage

from kftune.errors import StorageError
from kftune.results import CurvePoint
from kftune.storage import models
from kftune.storage._connecting import Database, damage, storage_errors
from kftune.storage._rows import check_whole, run_columns, run_record
from kftune.storage.records import ELSEWHERE_KEY, Purpose, RunRecord, SessionRecord, StudyRecord, TrialRecord

__all__ = ["Reading"]

_Record = TypeVar("_Record", StudyRecord, SessionRecord)


class Reading:
    """What :class:`~kftune.storage.repository.Repository` reads.

    Args:
        database: which.
        engine: kftune's, on its tables.
        optuna_storage: Optuna's, on the same database.
    """

    def __init__(self, database: Database, engine: sa.Engine, optuna_storage: RDBStorage) -> None:
        self._database = database
        self._engine = engine
        self._rdb = optuna_storage
        # The cache keeps finished trials, so that the many `load_study` of a session do not read them again.
        self._optuna = get_storage(optuna_storage)

    def _forget_trials(self) -> None:
        """Read Optuna's trials anew, after its tables were changed without it."""
        self._optuna = get_storage(self._rdb)

    @property
    def optuna_storage(self) -> BaseStorage:
        """Optuna's storage on the same database; pass it to ``optuna.load_study``."""
        return self._optuna

    @property
    def name(self) -> str:
        """The database's path, or its URL without password."""
        return self._database.name

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for a database server."""
        return self._database.path

    def studies(self, file_name: str | None = None) -> list[StudyRecord]:
        """Studies in the order they were registered, of one study file or all."""
        return self._records(StudyRecord, models.Study, file_name)

    def file_names(self) -> list[str]:
        """Names of the study files that have studies here, in the order they came."""
        return list(dict.fromkeys(record.file_name for record in self.studies()))

    def revision(self) -> str:
        """A short text that is another one whenever studies, their names, trials, runs or sessions have changed."""
        counts = [
            sa.select(sa.func.count(), sa.func.max(table.id)).select_from(table)
            for table in (models.Study, models.Session, models.Run)
        ]
        ledgers = sa.select(models.Session.ended_at, models.Session.ledger)
        superseded = sa.select(sa.func.count()).where(models.Run.superseded)
        plans = sa.select(models.Study.study, models.Study.n_trials)
        # Optuna's table, whose columns are the same in every version of its schema.
        trials = sa.text("SELECT state, COUNT(*) FROM trials GROUP BY state ORDER BY state")
        with self._read() as connection:
            found = [tuple(row) for query in (*counts, superseded, plans, ledgers) for row in connection.execute(query)]
            found += [tuple(row) for row in connection.execute(trials)]
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]

    def trials(self, study: str) -> list[TrialRecord]:
        """Optuna's trials of a study, by number.

        Raises:
            StorageError: there is no such study.
        """
        with storage_errors(self.name), damage(self.name):
            try:
                study_id = self._optuna.get_study_id_from_name(study)
            except KeyError as error:
                raise StorageError(self._missing(study)) from error
            trials = self._optuna.get_all_trials(study_id, deepcopy=False)
        return [
            TrialRecord(
                number=trial.number,
                state=trial.state.name.lower(),
                value=trial.value,
                params=dict(trial.params),
                datetime_start=trial.datetime_start,
                datetime_complete=trial.datetime_complete,
                is_enqueued="fixed_params" in trial.system_attrs,
                is_from_elsewhere=ELSEWHERE_KEY in trial.user_attrs,
            )
            for trial in trials
        ]

    def _missing(self, study: str) -> str:
        """Why Optuna has no study of a name, and what to do about it."""
        record = next((record for record in self.studies() if record.study == study), None)
        if record is None:
            return f"{self.name} holds no study {study!r}"
        delete, resume = (
            shlex.join(["kftune", command, name, "--storage", self.name])
            for command, name in (("delete", study), ("resume", record.file_name))
        )
        restored = "" if "imported" in record.config else f"`{resume}` restores it from them, "
        return (
            f"{self.name}: the Optuna study {study!r} was deleted outside kftune, whose runs are still here; "
            f"{restored}`{delete}` deletes them too"
        )

    def sessions(self, file_name: str | None = None) -> list[SessionRecord]:
        """Sessions in the order they began, of one study file or all."""
        return self._records(SessionRecord, models.Session, file_name)

    def _records(
        self, kind: type[_Record], table: type[models.Study | models.Session], file_name: str | None
    ) -> list[_Record]:
        """A table's rows, in the order they came; the columns are called like the record's attributes."""
        query = sa.select(*(getattr(table, field.name) for field in fields(kind))).order_by(table.id)
        if file_name is not None:
            query = query.where(table.file_name == file_name)
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
            for row in rows:
                check_whole(row, table)
            return [kind(**row) for row in rows]

    def runs(
        self,
        study: str | None = None,
        *,
        curves: bool = True,
        purpose: Purpose = "search",
        superseded: bool = False,
    ) -> list[RunRecord]:
        """Runs by study (in the order they were registered), budget factor, trial, repeat and attempt.

        Args:
            study: only of this study.
            curves: with their points; without, every ``result.curve`` is empty and reading is much faster.
            purpose: of the search (what trials' values are made of), or those that confirm some of its trials.
            superseded: those that were made again, or are to be, instead of those that count.
        """
        where = [models.Run.purpose == purpose, models.Run.superseded.is_(superseded)]
        if study is not None:
            where.append(models.Study.study == study)
        with self._read() as connection:
            query = (
                sa.select(models.Study.study, *run_columns(connection))
                .join_from(models.Run, models.Study)
                .where(*where)
                .order_by(
                    models.Run.study_id,
                    models.Run.budget_factor,
                    models.Run.trial,
                    models.Run.repeat,
                    models.Run.attempt,
                )
            )
            rows = connection.execute(query).mappings().all()
            found = _curves(connection, where) if curves else {}
        with damage(self.name):
            return [run_record(row, found.get(row["id"], ())) for row in rows]

    def micro_batch(self, key: str) -> int | None:
        """The micro-batch size found for ``key`` (problem, optimizer, device), if it was looked for."""
        with self._read() as connection:
            query = sa.select(models.MicroBatch.size).where(models.MicroBatch.key == key)
            return connection.scalar(query)

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with storage_errors(self.name), damage(self.name), self._engine.begin() as connection:
            yield connection


def _curves(connection: sa.Connection, where: Sequence[sa.ColumnElement[bool]]) -> dict[int, tuple[CurvePoint, ...]]:
    row = models.Point
    query = (
        sa.select(
            row.run_id,
            row.train_seconds,
            row.update,
            row.train_loss,
            row.test_loss,
            row.accuracy,
            row.readings,
        )
        .join_from(models.Point, models.Run)
        .join(models.Study)
        .where(*where)
        .order_by(row.run_id, row.position)
    )
    points = groupby(connection.execute(query).all(), key=itemgetter(0))
    return {
        run_id: tuple(
            CurvePoint(
                train_seconds=seconds,
                update=update,
                train_loss=train,
                test_loss=test,
                accuracy=accuracy,
                readings=readings,
            )
            for _, seconds, update, train, test, accuracy, readings in group
        )
        for run_id, group in points
    }
