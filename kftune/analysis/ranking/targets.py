"""Time to target: how long an optimizer's best configuration takes to reach a loss for the first time.

The time is that of the first evaluation at which the mean over the configuration's runs is at or below the target. A
loss that reads like the target in the four digits in which losses are told is at it: else one would find "never" beside
an equal number.
Nothing is interpolated: a loss that was not measured was not reached, so times are rounded up to the evaluations'
spacing. What never gets there takes for ever (inf). The runs are the confirming ones where there are any, else those
of the search.

Unless it is given, a problem's target is the upper median of its optimizers' losses at the end of these runs, so that
at least half of the optimizers reach it, and it is not set by the worst of them. Losses of the search are flattered:
where any optimizer is confirmed, the target is set by the confirmed ones, and the time of the others is unknown (NaN).
So is the time of what is not confirmed at another multiple of the budget than 1, whatever the target.

Over several problems: performance profiles (Dolan & Moré 2002, Benchmarking optimization software with performance
profiles), and their area as the score of AlgoPerf (Dahl et al. 2023, Benchmarking Neural Network Training Algorithms,
Section 4.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from kftune.analysis.stored.curves import Across
from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.analysis.stored.steps import Steps, runs_steps
from kftune.analysis.trust.confirmed import confirmed_results
from kftune.wording import reads_up_to

__all__ = ["R_MAX", "PerformanceProfile", "TimeToTarget", "first_reached", "performance_profiles", "times_to_target"]

R_MAX = 4.0
"""AlgoPerf's: an optimizer that takes four times as long as the fastest scores as one that never gets there."""


@dataclass(frozen=True, kw_only=True)
class TimeToTarget:
    """How long one optimizer takes to a problem's target.

    Attributes:
        file_name: the study file's ``name``.
        study: full name.
        problem: label.
        optimizer: label.
        trial: the configuration.
        budget_factor: multiple of the study's budget.
        is_confirmed: whether the runs are confirming ones; else the loss is the search's own, and flattered.
        target: the objective to reach.
        across: unit of ``time``.
        time: train seconds or updates; inf if never, NaN if unknown: see the module.
        final: the objective at the end; NaN where ``time`` is.
    """

    file_name: str
    study: str
    problem: str
    optimizer: str
    trial: int
    budget_factor: float
    is_confirmed: bool
    target: float
    across: Across
    time: float
    final: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class PerformanceProfile:
    """ρ(τ): share of the problems that an optimizer solves within τ times the fastest one's time.

    Attributes:
        optimizer: label.
        ratios: its time over the fastest time, sorted, one per problem; inf where it does not get there.
        score: mean of ρ over τ from 1 to 4, AlgoPerf's benchmark score; 1 if it is the fastest everywhere.
    """

    optimizer: str
    ratios: tuple[float, ...]
    score: float

    def share_within(self, factor: float) -> float:
        """ρ(factor)."""
        return sum(ratio <= factor for ratio in self.ratios) / len(self.ratios)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def first_reached(steps: Steps, target: float) -> float:
    """Where a step function is first at or below the target; inf if it never is."""
    reached = np.flatnonzero(steps.values <= target)
    return float(steps.at[reached[0]]) if len(reached) else math.inf


def times_to_target(
    file: FileResults,
    *,
    targets: float | Mapping[str, float] | None = None,
    across: Across = "train_seconds",
    budget_factor: float = 1.0,
) -> list[TimeToTarget]:
    """Time to target of every study with a usable configuration, problem by problem.

    Args:
        file: with curves.
        targets: one for all problems, or by problem's label; where there is none, see the module.
        across: train seconds or updates.
        budget_factor: which confirming runs.

    Returns:
        Nothing of a problem for which there is no target.
    """
    confirmed = {r.study: r.trial for r in confirmed_results(file) if r.budget_factor == budget_factor}
    found = []
    for problem in file.problems:
        entries = [
            entry
            for study in file.of_problem(problem)
            if (entry := _entry(study, confirmed.get(study.record.study), across, budget_factor)) is not None
        ]
        given = targets.get(problem) if isinstance(targets, Mapping) else targets
        only_confirmed = budget_factor != 1 or (given is None and any(entry.is_confirmed for entry in entries))
        finals = [entry.final for entry in entries if entry.is_confirmed or not only_confirmed]
        if given is None and not finals:
            continue
        target = float(np.quantile(finals, 0.5, method="higher")) if given is None else given
        found += [
            entry.timed(target, file_name=file.name, is_known=entry.is_confirmed or not only_confirmed)
            for entry in entries
        ]
    return found


class _Entry(NamedTuple):
    """A study's configuration and the mean of its runs."""

    study: StudyResults
    trial: int
    is_confirmed: bool
    steps: Steps
    across: Across
    budget_factor: float

    @property
    def final(self) -> float:
        """The objective at the end."""
        return float(self.steps.values[-1])

    def timed(self, target: float, *, file_name: str, is_known: bool) -> TimeToTarget:
        """Its time to the target, or that it is not known."""
        record = self.study.record
        return TimeToTarget(
            file_name=file_name,
            study=record.study,
            problem=record.problem,
            optimizer=record.optimizer,
            trial=self.trial,
            budget_factor=self.budget_factor,
            is_confirmed=self.is_confirmed,
            target=target,
            across=self.across,
            time=first_reached(self.steps, reads_up_to(target)) if is_known else math.nan,
            final=self.final if is_known else math.nan,
        )


def _entry(study: StudyResults, confirmed: int | None, across: Across, budget_factor: float) -> _Entry | None:
    """The confirmed trial with its confirming runs, else the best of the search with its own."""
    if confirmed is not None:
        runs = [run for run in study.confirmations if run.trial == confirmed and run.budget_factor == budget_factor]
        known = [run for run in runs if run.result.outcome != "crashed"]
        steps = runs_steps(known, study.objective, untrained=study.untrained_confirming, across=across)
        return None if steps is None else _Entry(study, confirmed, True, steps, across, budget_factor)
    best = next(iter(study.ranked()), None)
    if best is None:
        return None
    steps = runs_steps(best.runs, study.objective, untrained=study.untrained, across=across)
    return None if steps is None else _Entry(study, best.trial.number, False, steps, across, budget_factor)


def performance_profiles(times: Sequence[TimeToTarget]) -> list[PerformanceProfile]:
    """Profiles over the problems that someone solves, in the order in which the optimizers come.

    Problems of one label in several study files are several problems. An optimizer without an entry for a problem does
    not solve it; one with an unknown time is left out.
    """
    unknown = {entry.optimizer for entry in times if math.isnan(entry.time)}
    by_problem: dict[tuple[str, str], dict[str, float]] = {}
    for entry in times:
        if entry.optimizer not in unknown:
            by_problem.setdefault((entry.file_name, entry.problem), {})[entry.optimizer] = entry.time
    solved = [found for found in by_problem.values() if min(found.values()) < math.inf]
    if not solved:
        return []
    profiles = []
    for optimizer in dict.fromkeys(entry.optimizer for entry in times if entry.optimizer not in unknown):
        ratios = sorted(_ratio(found.get(optimizer, math.inf), min(found.values())) for found in solved)
        profiles.append(PerformanceProfile(optimizer=optimizer, ratios=tuple(ratios), score=_score(ratios)))
    return profiles


def _ratio(time: float, fastest: float) -> float:
    if fastest == 0:  # the untrained model is at the target
        return 1.0 if time == 0 else math.inf
    return time / fastest


def _score(ratios: Sequence[float]) -> float:
    """Integral of ρ from 1 to r_max over its length; each problem gives what is left of the interval."""
    return sum(max(0.0, R_MAX - ratio) for ratio in ratios) / (len(ratios) * (R_MAX - 1))
