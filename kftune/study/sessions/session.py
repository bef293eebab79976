"""What every session of runs has in common: slots, lost and disturbed runs, storing, crashes, an orderly end."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shlex
import socket
import sys
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from kftune._version import __version__
from kftune.results import CurvePoint, Outcome, RunResult, RunSpec
from kftune.space import Value
from kftune.storage.records import Purpose
from kftune.storage.repository import Repository, RunRecord, SessionRecord
from kftune.study.config import StudyConfig, StudyPlan, make_plans, without_password
from kftune.study.executors import Asked, Finished, LocalExecutor, Lost, Progressed, RunEvent, Started, TimedOut
from kftune.study.executors.leases import Holder
from kftune.study.executors.ledger import Ledger
from kftune.study.sessions.calibrating import MachineSpeed, threads_notice
from kftune.study.sessions.reporting import Reporter, RunKey

__all__ = ["Interrupt", "Job", "RunSummary", "Session"]

_POLL_SECONDS = 0.2
_MAX_ATTEMPTS = 3  # at a run that is lost to the machine
_MAX_IDENTICAL_CRASHES = 3
_SILENT_BUDGETS = 5.0  # a run that is not heard of for so many budgets, and the margin, has hung
_SILENCE_MARGIN_SECONDS = 120.0
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(\.\d+)?(e[+-]?\d+)?")
_PACKAGES = ("torch", "optuna", "GPyOpt", "GPy", "numpy", "scipy")


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


@dataclass(kw_only=True)
class Job:
    """A run that waits for a slot, or is on one.

    Attributes:
        plan: its study.
        trial: number of the trial whose configuration it trains.
        repeat: from 0.
        params: resolved hyperparameters.
        seed: of initial weights and data order.
        purpose: see :class:`kftune.storage.records.RunRecord`, as for the next two.
        budget_factor: multiple of the study's budget.
        attempt: from 1.
        losses: attempts of this session that were lost to the machine.
        disturbances: attempts of all sessions that are superseded, because the machine was disturbed.
        is_judged: whether it waits after each evaluation but the last to be told to go on.
        points: its curve so far.
    """

    plan: StudyPlan
    trial: int
    repeat: int
    params: Mapping[str, Value]
    seed: int
    purpose: Purpose = "search"
    budget_factor: float = 1.0
    attempt: int = 1
    losses: int = 0
    disturbances: int = 0
    is_judged: bool = False
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    points: list[CurvePoint] = field(default_factory=list)

    @property
    def key(self) -> RunKey:
        """For messages."""
        return RunKey(self.plan.study, self.trial, self.repeat, self.budget_factor)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.plan.study}, trial {self.trial}, repeat {self.repeat}"


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
        *,
        config: StudyConfig,
        repository: Repository,
        devices: Sequence[str],
        data_dir: Path,
        reporter: Reporter,
        interrupt: Interrupt,
    ) -> None:
        self.config = config
        self.repository = repository
        self.devices = list(devices)
        self.data_dir = data_dir
        self.reporter = reporter
        self.interrupt = interrupt
        self.plans = make_plans(config)
        self.threads = config.threads_per_worker(self.devices)
        self.ledger = Ledger(n_slots=len(self.devices))
        self.n_runs = 0
        self.crash: str | None = None
        self._queue: deque[Job] = deque()
        self._disturbed: deque[Job] = deque()
        self._running: dict[int, Job] = {}
        self._crashes: Counter[tuple[str, str]] = Counter()
        self._micro_batches: dict[tuple[str, str], int | None] = {}
        self._told_of: set[tuple[str, tuple[Holder, ...]]] = set()

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

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Run all jobs."""
        self._speed = MachineSpeed(self.config, repository=self.repository, threads=self.threads)
        notices = [threads_notice(self.config, repository=self.repository, devices=self.devices)]
        if self.repository.path is None:
            notices.append(f"{self.repository.name}: see to it that no other kftune runs studies in this database now")
        self._session_id = self.repository.begin_session(self._session_record())
        try:
            with LocalExecutor(
                self.devices, threads=self.threads, ledger=self.ledger, name=self.config.name
            ) as self._executor:
                for notice in (self._executor.notice(), *notices):
                    if notice is not None:
                        self.reporter.message(notice)
                self._loop()
        finally:
            ledger = self.ledger.to_dict()
            self.repository.save_session(self._session_id, ledger=ledger, ended_at=datetime.now(UTC))

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
            job.started_at = datetime.now(UTC)
        elif isinstance(event, Progressed):
            job.points.append(event.point)
            self.reporter.point(job.key, event.point)
        elif isinstance(event, Asked):
            self._executor.judge(event.slot, goes_on=self._goes_on(job, job.points[-1]))
        elif isinstance(event, Finished):
            self._finish(event.slot, event.result, event.wall_seconds)
        elif isinstance(event, TimedOut):
            self._finish(event.slot, _partial(job, Outcome.TIMED_OUT, event.reason), event.wall_seconds)
        else:
            self._lost(event)

    def _tell_of_waiting(self) -> None:
        """Say once whom a device is shared with."""
        for waiting in self._executor.waiting():
            if (waiting.device, waiting.holders) not in self._told_of and waiting.holders:
                self._told_of.add((waiting.device, waiting.holders))
                self.reporter.message(str(waiting))

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
        job.started_at = datetime.now(UTC)
        job.points.clear()
        self._running[slot] = job
        spec = self._spec(job, self.devices[slot])
        if self.config.micro_batch is not None:
            spec = replace(spec, micro_batch=self._micro_batch(slot, job.plan, spec))
        self.reporter.run_started(job.key, self.devices[slot])
        self._executor.submit(
            slot, spec, limit_seconds=self._limit_seconds(job), silence_seconds=self._silence_seconds(job)
        )

    def _spec(self, job: Job, device: str) -> RunSpec:
        plan, config = job.plan, self.config
        seconds, updates = config.budget.seconds, config.budget.updates
        return RunSpec(
            problem=plan.problem_name,
            problem_args=dict(plan.problem_args),
            optimizer=plan.optimizer_name,
            params=job.params,
            budget_seconds=None if seconds is None else seconds * job.budget_factor,
            budget_updates=None if updates is None else max(1, round(updates * job.budget_factor)),
            seed=job.seed,
            device=device,
            dtype=config.dtype,
            threads=self.threads,
            data_dir=str(self.data_dir),
            module_dir=config.module_dir or "",
            n_evaluations=config.evaluation.points,
            train_examples=config.evaluation.train_examples,
            is_judged=job.is_judged,
        )

    def _micro_batch(self, slot: int, plan: StudyPlan, spec: RunSpec) -> int | None:
        """What ``micro_batch`` means for a study on a slot's device; None for batches as they are.

        A size that fits is looked for once, with the study's largest batch, and stored.
        """
        if self.config.micro_batch != "auto":
            return self.config.micro_batch
        place = (plan.study, self.devices[slot])
        if place not in self._micro_batches:
            key = self._micro_batch_key(plan, self.devices[slot])
            found = self.repository.micro_batch(key)
            if found is None:
                wanted = plan.largest_batch()
                with self.ledger.counted("probing"):
                    found = self._executor.find_micro_batch(slot, spec, wanted=wanted) or 0
                self.repository.save_micro_batch(key, found, found_at=datetime.now(UTC))
                if found < wanted:
                    what = f"micro-batches of at most {found} examples" if found else "no micro-batch"
                    self.reporter.message(f"{plan.study}: {what} of {wanted} fit in the memory of {place[1]}")
            self._micro_batches[place] = found or None
        return self._micro_batches[place]

    def _micro_batch_key(self, plan: StudyPlan, device: str) -> str:
        """What the size depends on, as text."""
        identity = plan.identity()
        what = {key: identity[key] for key in ("problem", "optimizer", "space", "dtype")}
        return json.dumps({**what, "host": socket.gethostname(), "device": device}, sort_keys=True)

    def _limit_seconds(self, job: Job) -> float | None:
        """Wall seconds that a run may take, evaluations included; none unless the study file says."""
        return None if self.config.run_timeout is None else self.config.run_timeout * job.budget_factor

    def _silence_seconds(self, job: Job) -> float | None:
        """Seconds without a word from it after which a run counts as hung, where the study file says nothing.

        It has no part in how long evaluations take in all; none for a budget in updates.
        """
        seconds = self.config.budget.seconds
        if self.config.run_timeout is not None or seconds is None:
            return None
        return _SILENT_BUDGETS * seconds * job.budget_factor + _SILENCE_MARGIN_SECONDS

    def _lost(self, event: Lost) -> None:
        """A worker died: the run is made again a few times, then recorded as crashed."""
        job = self._running[event.slot]
        if job.losses + 1 >= _MAX_ATTEMPTS:
            self._finish(event.slot, _partial(job, Outcome.CRASHED, event.reason), event.wall_seconds)
            return
        del self._running[event.slot]
        self.ledger.add("busy", event.wall_seconds)
        self.ledger.add("lost", event.wall_seconds)
        self.reporter.message(
            f"{job.name}: {event.reason.splitlines()[0]}; "
            f"running it again (attempt {job.losses + 2} of {_MAX_ATTEMPTS})"
        )
        self._queue.appendleft(replace(job, attempt=job.attempt + 1, losses=job.losses + 1, points=[]))

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
            self._disturbed.append(replace(job, attempt=job.attempt + 1, disturbances=job.disturbances + 1, points=[]))
            return
        self.n_runs += 1
        if result.outcome is Outcome.CRASHED:
            self._executor.retire(slot)
            self._count_crash(job, result)
        self.reporter.run_finished(job.key, result)
        self._queue.extendleft(reversed(self._done(job, result)))

    def _count_crash(self, job: Job, result: RunResult) -> None:
        # Sizes and addresses differ from one configuration to the next.
        last_line = result.message.strip().splitlines()[-1] if result.message.strip() else ""
        signature = (job.plan.study, _NUMBER.sub("#", last_line))
        self._crashes[signature] += 1
        if self._crashes[signature] >= _MAX_IDENTICAL_CRASHES:
            self.crash = (
                f"{job.plan.study} crashed {_MAX_IDENTICAL_CRASHES} times in the same way; the last:\n"
                f"{result.message.strip()}"
            )

    def _session_record(self) -> SessionRecord:
        versions = {"kftune": __version__, "python": platform.python_version()}
        versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
        versions |= self.config.code_versions()
        return SessionRecord(
            id=None,
            file_name=self.config.name,
            started_at=datetime.now(UTC),
            ended_at=None,
            host=socket.gethostname(),
            devices=self.devices,
            versions=versions,
            command=shlex.join([Path(sys.argv[0]).name, *map(without_password, sys.argv[1:])]),
            ledger=self.ledger.to_dict(),
        )


def _partial(job: Job, outcome: Outcome, message: str) -> RunResult:
    """What is known of a run whose worker is gone."""
    last = job.points[-1] if job.points else None
    return RunResult(
        outcome=outcome,
        message=message,
        curve=tuple(job.points),
        train_seconds=last.train_seconds if last else 0.0,
        updates=last.update if last else 0,
    )
