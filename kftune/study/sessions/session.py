"""The loop that all sessions have in common: slots filled in turn, runs that were lost made again, an orderly end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from kftune.results import CurvePoint, Outcome, RunResult
from kftune.storage.code_changes import notice_of_change
from kftune.storage.records import Purpose
from kftune.storage.repository import Repository, RunRecord
from kftune.study.config import StudyConfig, make_plans
from kftune.study.executors import make_executor
from kftune.study.executors.ledger import Ledger
from kftune.study.executors.protocol import (
    Asked,
    Finished,
    Holder,
    Lost,
    Progressed,
    RunEvent,
    Started,
    TimedOut,
)
from kftune.study.sessions.calibrating import MachineSpeed, threads_notice
from kftune.study.sessions.crashes import Crashes
from kftune.study.sessions.job import Job, limit_seconds, run_spec, silence_seconds
from kftune.study.sessions.micro_batches import MicroBatches
from kftune.study.sessions.opening import session_record
from kftune.study.sessions.reporting import Reporter

__all__ = ["Interrupt", "RunSummary", "Session"]

_POLL_SECONDS = 0.2
_MAX_ATTEMPTS = 3  # at a run that is lost to the machine


class Interrupt:
    """Asks the runner to stop after the runs in progress. Safe to call from a signal handler."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Finish what is running, then stop."""
        self.requested = True


@dataclass(frozen=True)
class RunSummary:
    """How a session ended.

    Attributes:
        outcome: ``crashed`` means that a user's own code failed in the same way several times, ``limited`` that the
            study file's limit was reached.
        message: for people; the traceback after a crash.
        n_runs: runs stored in this session.
    """

    outcome: Literal["complete", "already_complete", "interrupted", "limited", "crashed"]
    message: str = ""
    n_runs: int = 0


class Session(ABC):
    """One sitting of the runner at the studies of a study file.

    Args:
        config: the study file.
        repository: an open database that no other runner writes.
        devices: one entry per slot.
        data_dir: where datasets are.
        reporter: is told what happens.
        interrupt: asks for an orderly stop.
    """

    def __init__(
        self,
        config: StudyConfig,
        *,
        repository: Repository,
        devices: Sequence[str],
        data_dir: Path,
        reporter: Reporter | None,
        interrupt: Interrupt | None,
    ) -> None:
        self.config = config
        self.repository = repository
        self.devices = list(devices)
        self.data_dir = data_dir
        self.reporter = reporter or Reporter()
        self.interrupt = interrupt or Interrupt()
        self.plans = make_plans(config)
        self.threads = config.threads_per_worker(self.devices)
        self.ledger = Ledger(n_slots=len(self.devices))
        self.n_runs = 0
        self.crash: str | None = None
        self._queue: deque[Job] = deque()
        self._disturbed: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._crashes = Crashes()
        self._micro_batches = MicroBatches(config, repository=repository, ledger=self.ledger, say=self.reporter.message)
        self._told_of: set[tuple[str, tuple[Holder, ...]]] = set()
        self._told_of_changes: set[tuple[str, tuple[str, ...]]] = set()

    # -- what the kinds of session differ in -------------------------------------------------------------------------

    @abstractmethod
    def _more_jobs(self) -> list[Job] | None:
        """The next jobs in turn (perhaps none, for something that needed no run); None when there are none now.

        Asked again while others run: there may be more when they have ended.
        """

    @abstractmethod
    def _done(self, job: Job, result: RunResult) -> list[Job]:
        """A job's result is stored; returns jobs that follow from it and come next."""

    def _goes_on(self, job: Job, point: CurvePoint) -> bool:
        """Whether a judged job may go on after a point of its curve."""
        return True

    def _may_begin(self) -> bool:
        """Whether another job may be begun."""
        return not self.interrupt.requested and self.crash is None

    def retry_crashed(self, purpose: Purpose) -> None:
        """Have runs of earlier sessions that crashed made again, and say so."""
        n = {plan.study: self.repository.repeat_crashed(plan.study, purpose=purpose) for plan in self.plans}
        for study in (study for study in n if n[study]):
            self.reporter.message(f"{study}: {n[study]} crashed {'run is' if n[study] == 1 else 'runs are'} made again")
        if not any(n.values()):
            self.reporter.message(f"no run of {self.config.name} has crashed, so none is made again")

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Run all jobs."""
        self._speed = MachineSpeed(self.config, repository=self.repository, threads=self.threads)
        notices = [threads_notice(self.config, repository=self.repository, devices=self.devices)]
        if self.repository.path is None:
            notices.append(f"{self.repository.name}: see to it that no other kftune runs studies in this database now")
        notices.append(self._code_notice())
        self._session_id = self.repository.begin_session(
            session_record(self.config, devices=self.devices, ledger=self.ledger.to_dict())
        )
        try:
            with make_executor(
                self.devices, threads=self.threads, ledger=self.ledger, name=self.config.name
            ) as self._executor:
                for notice in (self._executor.notice(), *notices):
                    if notice is not None:
                        self.reporter.message(notice)
                self._loop()
        finally:
            ledger = self.ledger.to_dict()
            self.repository.save_session(self._session_id, ledger=ledger, ended_at=datetime.now(UTC))

    def _code_notice(self) -> str | None:
        runs = [run for plan in self.plans for run in self.repository.runs(plan.study, curves=False)]
        return notice_of_change(self.config.code_versions(), self.repository.sessions(self.config.name), runs)

    def _loop(self) -> None:
        while True:
            for slot in self._executor.idle_slots():
                job = self._next_job()
                if job is not None:
                    self._submit(slot, job)
            if not self._may_begin():
                for slot in self._executor.withdraw():
                    del self._running[slot]
            if not self._running:
                return
            self._tell_of_waiting()
            for event in self._executor.poll(_POLL_SECONDS):
                self._take_in(event)

    def _take_in(self, event: RunEvent) -> None:
        """See to what happened to a run."""
        job = self._running[event.slot]
        if isinstance(event, Started):
            job.begin()
        elif isinstance(event, Progressed):
            job.points.append(event.point)
            self.reporter.point(job.key, event.point)
        elif isinstance(event, Asked):
            self._executor.judge(event.slot, goes_on=self._goes_on(job, job.points[-1]))
        elif isinstance(event, Finished):
            self._tell_of_changes(job, event.changed)
            self._finish(event.slot, event.result, event.wall_seconds)
        elif isinstance(event, TimedOut):
            self._finish(event.slot, job.partial(Outcome.TIMED_OUT, event.reason), event.wall_seconds)
        else:
            self._lost(event)

    def _tell_of_waiting(self) -> None:
        """Say once whom a device is shared with."""
        for waiting in self._executor.waiting():
            if (waiting.device, waiting.holders) not in self._told_of and waiting.holders:
                self._told_of.add((waiting.device, waiting.holders))
                self.reporter.message(str(waiting))

    def _tell_of_changes(self, job: Job, changed: tuple[str, ...]) -> None:
        """Say once of a study that its code does more to its process than train."""
        if changed and (job.plan.study, changed) not in self._told_of_changes:
            self._told_of_changes.add((job.plan.study, changed))
            self.reporter.message(
                f"{job.name}: its code changed the process that it ran in ({', '.join(changed)}); a new worker is "
                "started after such a run, so that no other run is affected"
            )

    def _next_job(self) -> Job | None:
        """The next job in turn; None when there is none, or an end was asked for."""
        while self._may_begin():
            if self._queue:
                return self._queue.popleft()
            jobs = self._more_jobs()
            # A disturbance may have passed by the time that something else has run.
            self._queue.extend((*(jobs or ()), *self._disturbed))
            self._disturbed.clear()
            if jobs is None and not self._queue:
                return None
        return None

    def _submit(self, slot: int, job: Job) -> None:
        job.begin()
        self._running[slot] = job
        spec = run_spec(job, self.config, device=self.devices[slot], threads=self.threads, data_dir=self.data_dir)
        size = self._micro_batches.size(job.plan, spec, executor=self._executor, slot=slot)
        self.reporter.run_started(job.key, self.devices[slot])
        self._executor.submit(
            slot,
            replace(spec, micro_batch=size),
            limit_seconds=limit_seconds(job, self.config),
            silence_seconds=silence_seconds(job, self.config),
        )

    def _lost(self, event: Lost) -> None:
        """A worker died: the run is made again a few times, then recorded as crashed."""
        job = self._running[event.slot]
        if job.losses + 1 >= _MAX_ATTEMPTS:
            self._finish(event.slot, job.partial(Outcome.CRASHED, event.reason), event.wall_seconds)
            return
        del self._running[event.slot]
        self.ledger.add("busy", event.wall_seconds)
        self.ledger.add("lost", event.wall_seconds)
        self.reporter.message(
            f"{job.name}: {event.reason.splitlines()[-1]}; "
            f"running it again (attempt {job.losses + 2} of {_MAX_ATTEMPTS})"
        )
        self._queue.appendleft(job.lost())

    # -- what is stored ----------------------------------------------------------------------------------------------

    def _finish(self, slot: int, result: RunResult, wall_seconds: float) -> None:
        """Store a run, then see what follows from it."""
        job = self._running.pop(slot)
        self.ledger.add("busy", wall_seconds)
        result = self._speed.judged(result)
        again = job.disturbances < self.config.budget.reruns and self._speed.is_off(result)
        with self.ledger.counted("storing"):
            record = RunRecord(
                study=job.plan.study,
                trial=job.trial,
                repeat=job.repeat,
                seed=job.seed,
                params=job.params,
                session_id=self._session_id,
                started_at=job.started_at,
                wall_seconds=wall_seconds,
                attempt=job.attempt,
                device=self.devices[slot],
                result=result,
                purpose=job.purpose,
                budget_factor=job.budget_factor,
                superseded=again,
            )
            self.repository.add_run(record, session_ledger=self.ledger.to_dict())
        if again:
            self.reporter.message(f"{job.name}: {self._speed.described(result)}; it will be run again")
            self._disturbed.append(job.disturbed())
            return
        self.n_runs += 1
        if result.outcome is Outcome.CRASHED:
            self._executor.retire(slot)
            self.crash = self._crashes.add(job.plan.study, result.message) or self.crash
        self.reporter.run_finished(job.key, result)
        self._queue.extendleft(reversed(self._done(job, result)))
