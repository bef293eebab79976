"""The runner: asks the samplers, hands runs to the executor, and alone writes the database."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import optuna

import kftune
from kftune._targets import importable_from
from kftune.errors import StorageError
from kftune.problems import PROBLEMS
from kftune.problems._data import get_dataset, locate
from kftune.storage.repository import Repository, RunRecord, SessionRecord, StudyRecord
from kftune.study.config import StudyConfig, StudyPlan
from kftune.study.executors import Finished, LocalExecutor, Lost, Progressed, TimedOut
from kftune.study.ledger import Ledger
from kftune.study.lock import sole_runner
from kftune.study.reporting import Reporter, RunKey, StudyTotals
from kftune.study.trials import OpenTrial, Trials, run_seed
from kftune.training.results import CurvePoint, Outcome, RunResult, RunSpec

__all__ = ["Interrupt", "RunSummary", "preflight", "run_studies"]

_POLL_SECONDS = 0.2
_MAX_ATTEMPTS = 3  # at a run that is lost to the machine
_MAX_IDENTICAL_CRASHES = 3
_LIMIT_FACTOR = 5.0  # a run that takes this many budgets, and the margin, has hung
_LIMIT_MARGIN_SECONDS = 120.0


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
        outcome: ``crashed`` means that a user's own code failed in the same way several times.
        message: for people; the traceback after a crash.
        n_runs: runs stored in this session.
    """

    outcome: Literal["complete", "already_complete", "interrupted", "crashed"]
    message: str = ""
    n_runs: int = 0


def preflight(config: StudyConfig, *, data_dir: Path) -> None:
    """Check that every problem's data are there, before anything is written.

    Raises:
        DataMissingError: a problem's files are missing.
    """
    with importable_from(config.module_dir):
        for plan in config.plans():
            entry = PROBLEMS.get(plan.problem_name)
            if entry.dataset is not None:
                locate(get_dataset(entry.dataset), data_dir)


def run_studies(
    config: StudyConfig,
    *,
    repository: Repository,
    devices: Sequence[str],
    data_dir: Path,
    reporter: Reporter | None = None,
    interrupt: Interrupt | None = None,
) -> RunSummary:
    """Bring every study of a study file to its number of trials, going on from what is stored.

    Args:
        config: the study file.
        repository: an open database that no other runner writes.
        devices: one entry per slot.
        data_dir: where datasets are.
        reporter: is told what happens.
        interrupt: asks for an orderly stop.

    Raises:
        StudyChangedError: a study of this name is stored with another configuration; nothing is written.
        StorageError: the database cannot be written any more (a full disk, say); what is stored is safe.
        StudyLockedError: another process is running studies in this database; nothing is written.
        KeyboardInterrupt: passed on after the workers were ended and the session's seconds stored.
    """
    session = _Session(
        config=config,
        repository=repository,
        devices=devices,
        data_dir=data_dir,
        reporter=reporter or Reporter(),
        interrupt=interrupt or Interrupt(),
    )
    try:
        with sole_runner(repository.path):
            return session.run()
    except optuna.exceptions.StorageInternalError as error:
        raise StorageError(f"{repository.name}: {error.__cause__ or error}") from error


@dataclass
class _Run:
    """A run waiting for a slot, or on one."""

    trial: OpenTrial
    repeat: int
    attempt: int = 1
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    points: list[CurvePoint] = field(default_factory=list)

    @property
    def key(self) -> RunKey:
        return RunKey(self.trial.plan.study, self.trial.number, self.repeat)


class _Session:
    """One call of :func:`run_studies`."""

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
        self.plans = config.plans()
        self.threads = config.threads_per_worker(self.devices)
        self.ledger = Ledger(n_slots=len(self.devices))
        self.trials = Trials(config, plans=self.plans, repository=repository, ledger=self.ledger)
        self.n_runs = 0
        self.queue: deque[_Run] = deque()
        self.running: dict[int, _Run] = {}
        self.crashes: Counter[tuple[str, str]] = Counter()
        self.crash: str | None = None

    def run(self) -> RunSummary:
        self.repository.register([self._record(plan) for plan in self.plans])
        if self.trials.finished():
            return RunSummary("already_complete")
        self.session_id = self.repository.begin_session(self._session_record())
        self.reporter.started(self._totals(), self.devices)
        try:
            with LocalExecutor(self.devices, threads=self.threads, ledger=self.ledger) as executor:
                self.executor = executor
                self._loop(self.trials.in_turn())
        finally:
            ledger = self.ledger.to_dict()
            self.repository.save_session(self.session_id, ledger=ledger, ended_at=datetime.now(UTC))
        if self.crash is not None:
            return RunSummary("crashed", self.crash, self.n_runs)
        return RunSummary("complete" if self.trials.finished() else "interrupted", n_runs=self.n_runs)

    # -- what is to be done ------------------------------------------------------------------------------------------

    def _record(self, plan: StudyPlan) -> StudyRecord:
        return StudyRecord(
            study=plan.study,
            file_name=self.config.name,
            problem=plan.problem,
            optimizer=plan.optimizer,
            identity=plan.identity(),
            config=self.config.to_dict(),
            space=plan.space.to_dict(),
            n_trials=self.trials.n_trials[plan.study],
        )

    def _session_record(self) -> SessionRecord:
        packages = ("torch", "optuna", "GPyOpt", "GPy", "numpy", "scipy")
        versions = {"kftune": kftune.__version__, "python": platform.python_version()}
        versions |= {name: importlib.metadata.version(name) for name in packages}
        versions |= self.config.code_versions()
        return SessionRecord(
            id=None,
            file_name=self.config.name,
            started_at=datetime.now(UTC),
            ended_at=None,
            host=socket.gethostname(),
            devices=self.devices,
            versions=versions,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            ledger=self.ledger.to_dict(),
        )

    def _totals(self) -> list[StudyTotals]:
        done, wanted = self.trials.n_finished(), self.trials.n_trials
        return [
            StudyTotals(
                study=plan.study,
                n_trials=max(wanted[plan.study], done[plan.study]),
                n_runs=max(wanted[plan.study], done[plan.study]) * self.config.repeats,
                n_runs_done=len(self.repository.runs(plan.study, curves=False)),
                n_trials_done=done[plan.study],
            )
            for plan in self.plans
        ]

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _loop(self, trials: Iterator[OpenTrial]) -> None:
        while True:
            for slot in self.executor.idle_slots():
                run = self._next_run(trials)
                if run is not None:
                    self._submit(slot, run)
            if not self.running:
                return
            for event in self.executor.poll(_POLL_SECONDS):
                run = self.running[event.slot]
                if isinstance(event, Progressed):
                    run.points.append(event.point)
                    self.reporter.point(run.key, event.point)
                elif isinstance(event, Finished):
                    self._finish(event.slot, event.result, event.wall_seconds)
                elif isinstance(event, TimedOut):
                    message = f"killed after {event.limit_seconds:.0f} s of wall time"
                    self._finish(event.slot, _partial(run, Outcome.TIMED_OUT, message), event.wall_seconds)
                else:
                    self._lost(event)

    def _next_run(self, trials: Iterator[OpenTrial]) -> _Run | None:
        """The next run in turn, asking for new trials as needed; None when there is none or an end was asked for."""
        while not self.queue:
            if self.interrupt.requested or self.crash is not None:
                return None
            trial = next(trials, None)
            if trial is None:
                return None
            self._enqueue(trial)
        if self.interrupt.requested or self.crash is not None:
            return None
        return self.queue.popleft()

    def _enqueue(self, trial: OpenTrial) -> None:
        missing = [repeat for repeat in range(self.config.repeats) if repeat not in trial.results]
        self.queue.extend(_Run(trial, repeat) for repeat in missing)
        if not missing:
            self._tell(trial)

    def _submit(self, slot: int, run: _Run) -> None:
        run.started_at = datetime.now(UTC)
        run.points.clear()
        self.running[slot] = run
        self.reporter.run_started(run.key, self.devices[slot])
        self.executor.submit(slot, self._spec(run, self.devices[slot]), limit_seconds=self._limit_seconds())

    def _spec(self, run: _Run, device: str) -> RunSpec:
        plan, config = run.trial.plan, self.config
        return RunSpec(
            problem=plan.problem_name,
            problem_args=dict(plan.problem_args),
            optimizer=plan.optimizer_name,
            params=run.trial.params,
            budget_seconds=config.budget.seconds,
            budget_updates=config.budget.updates,
            seed=run_seed(config.seed, run.repeat),
            device=device,
            dtype=config.dtype,
            threads=self.threads,
            data_dir=str(self.data_dir),
            module_dir=config.module_dir or "",
            n_evaluations=config.evaluation.points,
            train_examples=config.evaluation.train_examples,
        )

    def _limit_seconds(self) -> float | None:
        """Wall seconds after which a run counts as hung; none for a budget in updates unless the study file says."""
        if self.config.run_timeout is not None:
            return self.config.run_timeout
        seconds = self.config.budget.seconds
        return None if seconds is None else _LIMIT_FACTOR * seconds + _LIMIT_MARGIN_SECONDS

    def _lost(self, event: Lost) -> None:
        """A worker died: the run is made again a few times, then recorded as crashed."""
        run = self.running[event.slot]
        if run.attempt >= _MAX_ATTEMPTS:
            self._finish(event.slot, _partial(run, Outcome.CRASHED, event.reason), event.wall_seconds)
            return
        del self.running[event.slot]
        self.ledger.add("busy", event.wall_seconds)
        self.reporter.message(
            f"{run.key.study}, trial {run.key.trial}, repeat {run.key.repeat}: {event.reason.splitlines()[0]}; "
            f"running it again (attempt {run.attempt + 1} of {_MAX_ATTEMPTS})"
        )
        self.queue.appendleft(_Run(run.trial, run.repeat, run.attempt + 1))

    # -- what is stored ----------------------------------------------------------------------------------------------

    def _finish(self, slot: int, result: RunResult, wall_seconds: float) -> None:
        """Store a run and, if it was its trial's last, tell the sampler."""
        run = self.running.pop(slot)
        self.ledger.add("busy", wall_seconds)
        with self.ledger.counted("storing"):
            record = RunRecord(
                study=run.key.study,
                trial=run.key.trial,
                repeat=run.repeat,
                seed=run_seed(self.config.seed, run.repeat),
                params=run.trial.params,
                session_id=self.session_id,
                started_at=run.started_at,
                wall_seconds=wall_seconds,
                attempt=run.attempt,
                device=self.devices[slot],
                result=result,
            )
            self.repository.add_run(record, session_ledger=self.ledger.to_dict())
        self.n_runs += 1
        self.trials.remember_untrained(run.trial.plan, run.repeat, result)
        if result.outcome is Outcome.CRASHED:
            self.executor.retire(slot)
            self._count_crash(run, result)
        self.reporter.run_finished(run.key, result)
        run.trial.results[run.repeat] = result
        if len(run.trial.results) == self.config.repeats:
            self._tell(run.trial)

    def _count_crash(self, run: _Run, result: RunResult) -> None:
        signature = (run.key.study, result.message.strip().splitlines()[-1] if result.message.strip() else "")
        self.crashes[signature] += 1
        if self.crashes[signature] >= _MAX_IDENTICAL_CRASHES:
            self.crash = (
                f"{run.key.study} crashed {_MAX_IDENTICAL_CRASHES} times in the same way; the last:\n"
                f"{result.message.strip()}"
            )

    def _tell(self, trial: OpenTrial) -> None:
        value, best = self.trials.tell(trial)
        self.reporter.trial_finished(trial.plan.study, trial.number, value, best)


def _partial(run: _Run, outcome: Outcome, message: str) -> RunResult:
    """What is known of a run whose worker is gone."""
    last = run.points[-1] if run.points else None
    return RunResult(
        outcome=outcome,
        message=message,
        curve=tuple(run.points),
        train_seconds=last.train_seconds if last else 0.0,
        updates=last.update if last else 0,
    )
