"""The only code that writes the database, and the only way to read it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Self

import optuna
import sqlalchemy as sa
from sqlalchemy import orm

from kftune.errors import StorageError
from kftune.storage import models
from kftune.storage._changing import empty_trials, remove_studies, rename_file, supersede_crashed
from kftune.storage._connecting import Access, Database, damage, optuna_errors, storage_errors
from kftune.storage._opening import dispose, is_made, make_file, open_engines
from kftune.storage._reading import Reading
from kftune.storage._registering import check_same, left_out
from kftune.storage._rows import delete_reports, put_study, run_row, session_row
from kftune.storage.records import Purpose, RunRecord, SessionRecord, StudyRecord, TrialRecord

__all__ = ["Repository", "RunRecord", "SessionRecord", "StudyRecord", "TrialRecord"]


class Repository(Reading):
    """An open database. Use :meth:`open`; close it, or use it in a ``with`` statement. For one thread."""

    @classmethod
    def open(cls, url: str, *, create: bool = True, read_only: bool = False) -> Self:
        """Open a database, and make it or bring it up to date where that is wanted.

        Args:
            url: an SQLAlchemy URL, e.g. ``sqlite:///quickstart.db``.
            create: make the database if it is not there.
            read_only: change nothing, not even an older schema; implies ``create=False``.

        Raises:
            StorageError: it is not there, cannot be read or written, or is something else.
            NewerDatabaseError: it was written by a later kftune.
        """
        # Optuna tells of every study it makes; kftune has its own ways to say so.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # What it cannot read is an error of ours; it would tell of every query that it then tries in another way.
        logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)
        access: Access = "read" if read_only else "create" if create else "write"
        database = Database.parse(url, access)
        with storage_errors(database.name):
            database = database.check_file()
            if database.path is not None and not database.path.exists():
                make_file(database, database.path)
            with damage(database.name):
                return cls(database, *open_engines(database))

    @staticmethod
    def is_made(url: str) -> bool:
        """Whether a database has kftune's tables already, or :meth:`open` would make them; nothing is written.

        Args:
            url: see :meth:`open`.

        Raises:
            StorageError: they could not be made, or the database is something else.
            NewerDatabaseError: it was written by a later kftune.
        """
        return is_made(url)

    @contextmanager
    def optuna_errors(self) -> Iterator[None]:
        """Inside the ``with`` block, what Optuna cannot read or write (a full disk, say) is an error of ours.

        Raises:
            StorageError: in place of Optuna's.
        """
        with optuna_errors(self.name):
            yield

    def close(self) -> None:
        """Give back all connections; the last one to close tidies up SQLite's write-ahead log."""
        dispose(self._engine, self._rdb)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- studies -----------------------------------------------------------------------------------------------------

    def register(self, records: Sequence[StudyRecord]) -> None:
        """Store studies of one study file, and make their Optuna studies; all of them or, if one is refused, none.

        Studies already stored get the new ``config`` and ``n_trials``, as long as their identity is the same. Those of
        the file that it no longer has get the new ``config`` too, if what its studies have in common is the same: it is
        the study file as it was last run.

        Raises:
            StudyChangedError: a stored study has another identity.
            StorageError: Optuna has a study of this name with trials that kftune did not make.
        """
        self._check_writable()
        with storage_errors(self.name):
            stored = self.check(records)
            there = optuna.get_all_study_names(self._optuna)
            for record in records:
                if record.study not in there:
                    optuna.create_study(study_name=record.study, storage=self._optuna, direction="minimize")
            with self._write() as session:
                for record in (*records, *left_out(stored.values(), records)):
                    put_study(session, record)

    def check(self, records: Sequence[StudyRecord]) -> dict[str, StudyRecord]:
        """Whether :meth:`register` would take studies; returns those that are stored, by name. Only reads.

        Raises:
            StudyChangedError: see :meth:`register`.
            StorageError: see there.
        """
        with storage_errors(self.name):
            stored = {record.study: record for record in self.studies()}
            summaries = optuna.get_all_study_summaries(self._optuna, include_best_trial=False)
        n_trials = {summary.study_name: summary.n_trials for summary in summaries}
        for record in records:
            check_same(stored.get(record.study), record)
            if record.study not in stored and n_trials.get(record.study):
                raise StorageError(
                    f"{self.name} holds an Optuna study {record.study!r} with trials that kftune did not make; "
                    "use another name or storage"
                )
        return stored

    def add_whole(
        self, records: Sequence[StudyRecord], session_record: SessionRecord, runs: Iterable[RunRecord]
    ) -> None:
        """Store new studies whose Optuna studies are there, their only session, and all their runs: all or nothing.

        Args:
            records: the studies.
            session_record: stored as it is.
            runs: of these studies; their ``session_id`` is that of the session.

        Raises:
            StorageError: one of the studies is stored already.
        """
        with self._write() as session:
            names = [record.study for record in records]
            found = session.scalar(sa.select(models.Study.study).where(models.Study.study.in_(names)))
            if found is not None:
                raise StorageError(f"{self.name} holds a study {found!r} already")
            for record in records:
                put_study(session, record)
            of_session = session_row(session_record)
            session.add(of_session)
            session.flush()
            rows = session.execute(sa.select(models.Study.study, models.Study.id).where(models.Study.study.in_(names)))
            ids = {row.study: row.id for row in rows}
            session.add_all(run_row(replace(run, session_id=of_session.id), ids[run.study]) for run in runs)

    def delete(self, studies: Sequence[str]) -> None:
        """Delete studies and all that is stored of them, Optuna's too; what is not stored is not missed.

        Args:
            studies: their full names. With the last study of a study file its sessions go.
        """
        with self._write() as session:
            remove_studies(session, studies)
        self._forget_trials()

    def rename(self, old: str, new: str) -> None:
        """Give a study file's studies and sessions another name.

        Raises:
            StorageError: studies of that name are stored already.
        """
        with self._write() as session:
            rename_file(session, old, new, name=self.name)

    def drop(self, study: str, numbers: Sequence[int]) -> None:
        """Forget trials with all their runs; each place is taken by a new trial when the study goes on.

        Args:
            study: its full name.
            numbers: of the trials.

        Raises:
            StorageError: there is no such study or trial; nothing is dropped.
        """
        numbers = sorted(set(numbers))
        there = {trial.number for trial in self.trials(study)}
        missing = [number for number in numbers if number not in there]
        if missing:
            raise StorageError(f"{study} has no trial {missing[0]}; it has {len(there)}, from 0")
        with self._write() as session:
            empty_trials(session, study, numbers)
        self._forget_trials()

    def repeat_crashed(self, study: str, *, purpose: Purpose) -> int:
        """Have a study's crashed runs made again; returns how many these are.

        They are superseded, and their trials are as if they had been interrupted.
        """
        with self._write() as session:
            n = supersede_crashed(session, study, purpose)
        self._forget_trials()
        return n

    def forget_reports(self, study: str, number: int) -> None:
        """Take back what a trial that runs has reported to Optuna's pruner, and where that has put it.

        Args:
            study: its study's name.
            number: of the trial.
        """
        with storage_errors(self.name):
            study_id = self._optuna.get_study_id_from_name(study)
            trial_id = self._optuna.get_trial_id_from_study_id_trial_number(study_id, number)
        with self._write() as session:
            delete_reports(session, trial_id)

    # -- sessions ----------------------------------------------------------------------------------------------------

    def begin_session(self, record: SessionRecord) -> int:
        """Store a session that starts now; returns its id."""
        row = session_row(record)
        with self._write() as session:
            session.add(row)
            session.flush()
            return row.id

    def save_session(self, session_id: int, *, ledger: Mapping[str, float], ended_at: datetime | None = None) -> None:
        """Store where a session's seconds went so far and, at its end, when it ended.

        Raises:
            StorageError: there is no such session.
        """
        with self._write() as session:
            row = self._session_row(session, session_id)
            row.ledger = dict(ledger)
            row.ended_at = ended_at if ended_at is not None else row.ended_at

    def _session_row(self, session: orm.Session, session_id: int) -> models.Session:
        row = session.get(models.Session, session_id)
        if row is None:
            raise StorageError(f"{self.name} holds no session {session_id}")
        return row

    # -- runs --------------------------------------------------------------------------------------------------------

    def add_run(self, record: RunRecord, *, session_ledger: Mapping[str, float]) -> None:
        """Store a run with its curve, and where its session's seconds went so far, in one transaction.

        Raises:
            StorageError: its study or session is not stored, or this repeat of this trial is stored already.
        """
        with self._write() as session:
            study_id = session.scalar(sa.select(models.Study.id).where(models.Study.study == record.study))
            if study_id is None:
                raise StorageError(f"{self.name} holds no study {record.study!r}")
            row = models.Run
            of_repeat = sa.select(row.id).where(
                row.study_id == study_id,
                row.purpose == record.purpose,
                row.budget_factor == record.budget_factor,
                row.trial == record.trial,
                row.repeat == record.repeat,
                row.superseded.is_(False),
            )
            if session.scalar(of_repeat) is not None:
                raise StorageError(
                    f"{self.name}: repeat {record.repeat} of trial {record.trial} of {record.study} is stored already"
                )
            self._session_row(session, record.session_id).ledger = dict(session_ledger)
            session.add(run_row(record, study_id))

    # -- micro-batch sizes ---------------------------------------------------------------------------------------------

    def save_micro_batch(self, key: str, size: int, *, found_at: datetime) -> None:
        """Store the micro-batch size found for ``key``, in place of an earlier one."""
        with self._write() as session:
            row = session.scalar(sa.select(models.MicroBatch).where(models.MicroBatch.key == key))
            if row is None:
                row = models.MicroBatch(key=key)
                session.add(row)
            row.size = size
            row.found_at = found_at

    # -- transactions ------------------------------------------------------------------------------------------------

    @contextmanager
    def _write(self) -> Iterator[orm.Session]:
        self._check_writable()
        engine = self._engine.execution_options(begin="IMMEDIATE")
        with storage_errors(self.name), orm.Session(engine) as session, session.begin():
            yield session

    def _check_writable(self) -> None:
        if self._database.read_only:
            raise StorageError(f"{self.name} is open for reading only")
