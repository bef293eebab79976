"""A run of a session: what it trains, how often that was tried before, what an executor is given for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from kftune.results import CurvePoint, Outcome, RunResult, RunSpec
from kftune.space import Value
from kftune.storage.records import Purpose, RunRecord
from kftune.study.config import StudyConfig, StudyPlan
from kftune.study.sessions.reporting import RunKey

__all__ = ["Job", "limit_seconds", "run_spec", "silence_seconds"]

_SILENT_BUDGETS = 5.0  # a run that is not heard of for so many budgets, and the margin, has hung
_SILENCE_MARGIN_SECONDS = 120.0


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

    def after(self, superseded: Sequence[RunRecord]) -> Self:
        """The same, when attempts at it by earlier sessions are superseded.

        Args:
            superseded: these attempts; perhaps none. One that crashed is made again because somebody said so, and
                not because the machine was disturbed.
        """
        disturbances = sum(run.result.outcome is not Outcome.CRASHED for run in superseded)
        return replace(self, attempt=max((r.attempt for r in superseded), default=0) + 1, disturbances=disturbances)

    def begin(self) -> None:
        """It is given to a slot, or begins there: its time runs from now, its curve is empty."""
        self.started_at = datetime.now(UTC)
        self.points.clear()

    def lost(self) -> Self:
        """The next attempt, when the machine has lost this one."""
        return replace(self, attempt=self.attempt + 1, losses=self.losses + 1, points=[])

    def disturbed(self) -> Self:
        """The next attempt, when this one is superseded."""
        return replace(self, attempt=self.attempt + 1, disturbances=self.disturbances + 1, points=[])

    def partial(self, outcome: Outcome, message: str) -> RunResult:
        """What is known of it when its worker is gone."""
        last = self.points[-1] if self.points else None
        return RunResult(
            outcome=outcome,
            message=message,
            curve=tuple(self.points),
            train_seconds=last.train_seconds if last else 0.0,
            updates=last.update if last else 0,
        )


def run_spec(job: Job, config: StudyConfig, *, device: str, threads: int, data_dir: Path) -> RunSpec:
    """What a worker is given.

    Args:
        job: the run.
        config: its study file.
        device: of its slot.
        threads: CPU threads.
        data_dir: where datasets are.
    """
    plan = job.plan
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
        threads=threads,
        data_dir=str(data_dir),
        module_dir=config.module_dir or "",
        n_evaluations=config.evaluation.points,
        train_examples=config.evaluation.train_examples,
        is_judged=job.is_judged,
    )


def limit_seconds(job: Job, config: StudyConfig) -> float | None:
    """Wall seconds that a run may take, evaluations included; none unless the study file says."""
    return None if config.run_timeout is None else config.run_timeout * job.budget_factor


def silence_seconds(job: Job, config: StudyConfig) -> float | None:
    """Seconds without a word from it after which a run counts as hung, where the study file says nothing.

    It has no part in how long evaluations take in all; none for a budget in updates.
    """
    seconds = config.budget.seconds
    if config.run_timeout is not None or seconds is None:
        return None
    return _SILENT_BUDGETS * seconds * job.budget_factor + _SILENCE_MARGIN_SECONDS
