"""Whether to trust the numbers: outcomes, the machine's speed, overshoot, and where all the seconds went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import fmean, median
from typing import Any

from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.analysis.stored.status import Ledger, file_ledger
from kftune.results import PHASES, Outcome
from kftune.storage.records import Purpose
from kftune.storage.repository import RunRecord

__all__ = ["Health", "MachineReading", "StepAnatomy", "StudyHealth", "health", "slowdown_factor", "step_anatomies"]

_SGD = "sgd"


@dataclass(frozen=True, kw_only=True)
class MachineReading:
    """How fast the machine was during one run.

    Attributes:
        study: full name.
        trial: number.
        repeat: of the trial, or of the confirmation.
        purpose: of the run.
        budget_factor: of the run.
        attempt: which.
        device: slot it ran on.
        started_at: UTC.
        slowdown: times slower than usual, on average over the run.
        is_flagged: off by more than the study file's ``budget.tolerance``, slower or faster.
        is_superseded: it was made again, or is to be.
    """

    study: str
    trial: int
    repeat: int
    purpose: Purpose
    budget_factor: float
    attempt: int
    device: str
    started_at: datetime
    slowdown: float
    is_flagged: bool
    is_superseded: bool


@dataclass(frozen=True, kw_only=True)
class StudyHealth:
    """One study's runs.

    Attributes:
        study: full name.
        problem: label.
        optimizer: label.
        outcomes: outcome → number of the search's runs that count.
        confirm_outcomes: the same of the confirming runs.
        n_raced: trials that were not repeated because their first run was hopeless.
        n_flagged: runs that count although the machine was off by more than the tolerance.
        n_superseded: runs that were made again, or are to be.
        mean_overshoot: train seconds past the budget, mean over the runs that used it up; None without such a run.
        max_overshoot: the largest.
    """

    study: str
    problem: str
    optimizer: str
    outcomes: Mapping[str, int]
    confirm_outcomes: Mapping[str, int]
    n_raced: int
    n_flagged: int
    n_superseded: int
    mean_overshoot: float | None
    max_overshoot: float | None


@dataclass(frozen=True, kw_only=True)
class Health:
    """A study file's runs.

    Attributes:
        name: the study file's ``name``.
        tolerance: beyond which a run is flagged; None if the machine's speed does not matter (a budget in updates).
        studies: in the order of the file.
        readings: of every run with a calibration, in the order they began: the drift of the machine.
        ledger: where all seconds went.
    """

    name: str
    tolerance: float | None
    studies: tuple[StudyHealth, ...]
    readings: tuple[MachineReading, ...]
    ledger: Ledger

    @property
    def flagged(self) -> list[MachineReading]:
        """Readings of the runs that were flagged, those made again included."""
        return [reading for reading in self.readings if reading.is_flagged]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; times in ISO format."""
        readings = [asdict(r) | {"started_at": r.started_at.isoformat()} for r in self.readings]
        return asdict(self) | {"readings": readings, "ledger": self.ledger.to_dict()}


@dataclass(frozen=True, kw_only=True)
class StepAnatomy:
    """What an update of one study's runs is made of, over the search's runs that ended well.

    Hyperparameters differ from run to run, batch sizes among them: see ``examples_per_update``.

    Attributes:
        study: full name.
        problem: label.
        optimizer: label.
        n_runs: how many.
        seconds_per_update: train seconds per parameter update, median over runs.
        examples_per_update: median over runs.
        phase_shares: phase → share of all their train seconds; they add up to 1.
        against_sgd: seconds per update as a multiple of SGD's on the same problem; None where the file has no SGD.
    """

    study: str
    problem: str
    optimizer: str
    n_runs: int
    seconds_per_update: float
    examples_per_update: float
    phase_shares: Mapping[str, float]
    against_sgd: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def slowdown_factor(run: RunRecord) -> float | None:
    """How many times slower than usual the machine was during a run; None if that is unknown."""
    return run.result.calibration.slowdown if run.result.calibration is not None else None


def health(file: FileResults) -> Health:
    """See :class:`Health`; curves of the runs are not needed."""
    budget = file.config.get("budget") or {}
    tolerance = budget.get("tolerance")
    readings = [reading for study in file.studies for reading in _readings(study, tolerance)]
    return Health(
        name=file.name,
        tolerance=tolerance,
        studies=tuple(_study_health(study, tolerance) for study in file.studies),
        readings=tuple(sorted(readings, key=lambda reading: reading.started_at)),
        ledger=file_ledger(file),
    )


def _is_flagged(slowdown: float | None, tolerance: float | None) -> bool:
    if slowdown is None or tolerance is None or slowdown <= 0:
        return False
    return max(slowdown, 1 / slowdown) > 1 + tolerance


def _all_runs(study: StudyResults) -> Iterator[RunRecord]:
    yield from study.runs
    yield from study.confirmations
    yield from study.superseded


def _readings(study: StudyResults, tolerance: float | None) -> list[MachineReading]:
    return [
        MachineReading(
            study=run.study,
            trial=run.trial,
            repeat=run.repeat,
            purpose=run.purpose,
            budget_factor=run.budget_factor,
            attempt=run.attempt,
            device=run.device,
            started_at=run.started_at,
            slowdown=slowdown,
            is_flagged=_is_flagged(slowdown, tolerance),
            is_superseded=run.superseded,
        )
        for run in _all_runs(study)
        if (slowdown := slowdown_factor(run)) is not None
    ]


def _study_health(study: StudyResults, tolerance: float | None) -> StudyHealth:
    runs = [*study.runs, *study.confirmations]
    overshoots = [run.result.overshoot_seconds for run in runs if run.result.outcome is Outcome.COMPLETED]
    return StudyHealth(
        study=study.record.study,
        problem=study.record.problem,
        optimizer=study.record.optimizer,
        outcomes=_outcomes(study.runs),
        confirm_outcomes=_outcomes(study.confirmations),
        n_raced=sum(trial.is_raced for trial in study.trials),
        n_flagged=sum(_is_flagged(slowdown_factor(run), tolerance) for run in runs),
        n_superseded=len(study.superseded),
        mean_overshoot=fmean(overshoots) if overshoots else None,
        max_overshoot=max(overshoots, default=None),
    )


def _outcomes(runs: Sequence[RunRecord]) -> dict[str, int]:
    return dict(Counter(run.result.outcome.value for run in runs))


def step_anatomies(file: FileResults) -> list[StepAnatomy]:
    """One per study with an update in a run that ended well, problem by problem; curves are not needed."""
    found = []
    for problem in file.problems:
        studies = [(study, runs) for study in file.of_problem(problem) if (runs := _stepped(study))]
        per_update = {study.record.study: _seconds_per_update(runs) for study, runs in studies}
        sgd = next((per_update[study.record.study] for study, _ in studies if _is_sgd(study)), None)
        for study, runs in studies:
            seconds = per_update[study.record.study]
            found.append(
                StepAnatomy(
                    study=study.record.study,
                    problem=problem,
                    optimizer=study.record.optimizer,
                    n_runs=len(runs),
                    seconds_per_update=seconds,
                    examples_per_update=median(run.result.examples / run.result.updates for run in runs),
                    phase_shares=_phase_shares(runs),
                    against_sgd=seconds / sgd if sgd else None,
                )
            )
    return found


def _is_sgd(study: StudyResults) -> bool:
    """By the registry's name where it is stored, so that a label may be anything."""
    name: str = study.record.identity.get("optimizer", study.record.optimizer)
    return name == _SGD


def _stepped(study: StudyResults) -> list[RunRecord]:
    return [run for trial in study.trials for run in trial.successes if run.result.updates > 0]


def _seconds_per_update(runs: Sequence[RunRecord]) -> float:
    return median(run.result.train_seconds / run.result.updates for run in runs)


def _phase_shares(runs: Sequence[RunRecord]) -> dict[str, float]:
    seconds = {phase: sum(run.result.phase_seconds.get(phase, 0.0) for run in runs) for phase in PHASES}
    total = sum(seconds.values())
    return {phase: spent / total if total > 0 else 0.0 for phase, spent in seconds.items()}
