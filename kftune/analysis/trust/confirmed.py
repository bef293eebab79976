"""Losses of the search's winners on fresh seeds.

The best of many trials was lucky on the seeds on which it was chosen (the winner's curse). Confirming runs train the
best few of every optimizer again, from seeds that had no part in the search; only these say how good a configuration
is.

Choosing the best of the confirmed ones by their confirmed loss would begin the same error anew. So the search's own
choice stands for its optimizer, and another confirmed trial takes its place only if it is better beyond the noise: by
a paired t-test over the common seeds, at 1 % for all of them together (Holm). Where four configurations are equally
good, that happens in one study of a hundred; the confirmed loss is then off by 0.01 of its standard deviation over
seeds, and its 95 % interval covers the truth in 95 % (40,000 simulated studies of five seeds each).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from kftune.analysis.stored.results import FileResults, StudyResults, TrialResults
from kftune.analysis.trust.intervals import Interval, grid_step, holm, mean_interval, paired_t
from kftune.objective import run_objective
from kftune.storage.repository import RunRecord

__all__ = ["ConfirmedResult", "confirmed_results", "unconfirmed_better"]

_LEVEL = 0.01


@dataclass(frozen=True, kw_only=True)
class ConfirmedResult:
    """One trial, trained again on fresh seeds.

    Attributes:
        study: full name.
        problem: label.
        optimizer: label.
        trial: the search trial that was confirmed.
        budget_factor: multiple of the study's budget that each run got.
        values: objective by repeat; None for a run that crashed. Equal (budget factor, repeat) is an equal seed in all
            studies of the file. Runs that failed otherwise count as the untrained model.
        seeds: by repeat.
        mean: of the values there are; NaN if there is none.
        interval: 95 % interval of the mean over seeds (Student's t, within the losses that there can be); None with
            fewer than two values.
        step: of the grid on which the study's losses lie, as test errors do; 0 for none.
        tuned: the trial's value in the search; never part of ``mean``.
        updates: parameter updates per run with a value, mean; of all runs where none has one.
        train_seconds: likewise.
        outcomes: outcome → number of runs.
        params: resolved hyperparameters.
    """

    study: str
    problem: str
    optimizer: str
    trial: int
    budget_factor: float
    values: tuple[float | None, ...]
    seeds: tuple[int, ...]
    mean: float
    interval: Interval | None
    step: float
    tuned: float | None
    updates: float
    train_seconds: float
    outcomes: Mapping[str, int]
    params: Mapping[str, Any]

    def by_repeat(self) -> dict[int, float]:
        """The values there are, by repeat."""
        return {repeat: value for repeat, value in enumerate(self.values) if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def confirmed_results(file: FileResults) -> list[ConfirmedResult]:
    """The confirmed trial that stands for each study at each budget factor; see the module for how it is chosen.

    Args:
        file: with curves.

    Returns:
        By study, then budget factor; studies without confirming runs are not there.
    """
    found = []
    for study in file.studies:
        trials = _confirmed_of(study)
        for factor in sorted({trial.budget_factor for trial in trials}):
            found.append(_chosen([trial for trial in trials if trial.budget_factor == factor]))
    return found


def unconfirmed_better(study: StudyResults, *, budget_factor: float = 1.0) -> TrialResults | None:
    """The search's best trial, if it has no confirming run although trials that the search holds for worse have.

    It came after they were confirmed. None if nothing is confirmed at this budget factor.
    """
    confirmed = {run.trial for run in study.confirmations if run.budget_factor == budget_factor}
    best = next(iter(study.ranked()), None)
    if not confirmed or best is None or best.trial.number in confirmed:
        return None
    assert best.trial.value is not None  # ranked() holds no other
    values = [trial.trial.value for trial in study.trials if trial.trial.number in confirmed]
    return best if all(value is None or best.trial.value < value for value in values) else None


def _confirmed_of(study: StudyResults) -> list[ConfirmedResult]:
    if not study.confirmations:
        return []
    by_trial: dict[tuple[float, int], list[RunRecord]] = {}
    for run in study.confirmations:
        by_trial.setdefault((run.budget_factor, run.trial), []).append(run)
    tuned = {trial.trial.number: trial.trial.value for trial in study.trials}
    step, possible = _step(study), _possible(study)
    trials = [_result(study, runs, tuned.get(number), step, possible) for (_, number), runs in by_trial.items()]
    return sorted(trials, key=_as_the_search_ranked)


def _step(study: StudyResults) -> float:
    """From all runs, because few values may lie on a coarser grid."""
    searched = [value for trial in study.trials for value in trial.run_values]
    confirming = [_value(study, run) for run in study.confirmations]
    return grid_step(value for value in (*searched, *confirming) if value is not None)


def _possible(study: StudyResults) -> Interval:
    """What values the objective can have. A loss is taken to be never negative if it was in no run of the study."""
    if study.objective == "test_error":
        return 0.0, 1.0
    searched = [value for trial in study.trials for value in trial.run_values]
    values = [*searched, *(_value(study, run) for run in study.confirmations)]
    return (0.0 if all(value is None or not value < 0 for value in values) else -math.inf), math.inf


def _value(study: StudyResults, run: RunRecord) -> float | None:
    return run_objective(run.result, study.objective, untrained=study.untrained_confirming.get(run.repeat))


def _as_the_search_ranked(trial: ConfirmedResult) -> tuple[float, float, int]:
    return (trial.budget_factor, math.inf if trial.tuned is None else trial.tuned, trial.trial)


def _result(
    study: StudyResults, runs: Sequence[RunRecord], tuned: float | None, step: float, possible: Interval
) -> ConfirmedResult:
    by_repeat = {run.repeat: run for run in runs}
    values: list[float | None] = [None] * (max(by_repeat) + 1)
    seeds = [0] * len(values)
    for repeat, run in by_repeat.items():
        values[repeat] = _value(study, run)
        seeds[repeat] = run.seed
    known = [value for value in values if value is not None]
    counted = [run for run in by_repeat.values() if values[run.repeat] is not None] or runs
    record = study.record
    return ConfirmedResult(
        study=record.study,
        problem=record.problem,
        optimizer=record.optimizer,
        trial=runs[0].trial,
        budget_factor=runs[0].budget_factor,
        values=tuple(values),
        seeds=tuple(seeds),
        mean=fmean(known) if known else math.nan,
        interval=mean_interval(known, step=step, possible=possible),
        step=step,
        tuned=tuned,
        updates=fmean(run.result.updates for run in counted),
        train_seconds=fmean(run.result.train_seconds for run in counted),
        outcomes=dict(Counter(run.result.outcome.value for run in runs)),
        params=dict(runs[0].params),
    )


def _chosen(trials: Sequence[ConfirmedResult]) -> ConfirmedResult:
    """The search's choice, unless others are clearly better on common seeds; then the best of those."""
    usable = [trial for trial in trials if not math.isnan(trial.mean)]
    if not usable:
        return trials[0]
    first, others = usable[0], usable[1:]
    p_values = [1.0 if (test := _better(other, first)) is None else test for other in others]
    better = [other for other, p in zip(others, holm(p_values), strict=True) if p < _LEVEL]
    return min(better, key=lambda trial: trial.mean, default=first)


def _better(other: ConfirmedResult, first: ConfirmedResult) -> float | None:
    """One-sided p-value that ``other`` has the lower loss; None where the common seeds are too few to say."""
    mine, theirs = other.by_repeat(), first.by_repeat()
    common = sorted(mine.keys() & theirs.keys())
    test = paired_t([mine[repeat] - theirs[repeat] for repeat in common], step=first.step)
    if test is None:
        return None
    return test.p_value / 2 if test.mean < 0 else 1 - test.p_value / 2
