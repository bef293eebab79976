"""The best loss found so far, against trials and against all seconds spent.

A trial's cost is not its training alone: evaluation, set-up and runs that had to be made again cost the same seconds
of the same machine. The seconds of proposing configurations are known per session, not per study, and are not in
these curves; the ledger has them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from kftune.analysis.stored.results import FileResults, StudyResults, TrialResults

__all__ = ["Anytime", "best_so_far", "best_so_far_curves"]


@dataclass(frozen=True, kw_only=True)
class Anytime:
    """Best so far, a point per settled trial, by number.

    Attributes:
        study: full name.
        problem: label.
        optimizer: label.
        trials: how many trials were settled, from 1.
        spent_seconds: wall seconds of all runs of the study until then, those made again included.
        best: lowest value so far among trials that can be best; NaN before there is one.
        is_startup: whether the trial was a random one.
    """

    study: str
    problem: str
    optimizer: str
    trials: tuple[int, ...]
    spent_seconds: tuple[float, ...]
    best: tuple[float, ...]
    is_startup: tuple[bool, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def best_so_far_curves(file: FileResults) -> list[Anytime]:
    """One curve per study, in the order of the file; curves of runs are not needed."""
    return [best_so_far(study) for study in file.studies]


def best_so_far(study: StudyResults) -> Anytime:
    """See :class:`Anytime`."""
    can_be_best = {trial.trial.number for trial in study.ranked()}
    lost: dict[int, float] = {}
    for run in study.superseded:
        if run.purpose == "search":
            lost[run.trial] = lost.get(run.trial, 0.0) + run.wall_seconds
    spent, lowest = 0.0, math.nan
    seconds, best = [], []
    for trial in study.finished:
        number, value = trial.trial.number, trial.trial.value
        spent += _wall_seconds(trial) + lost.get(number, 0.0)
        if number in can_be_best and value is not None and not value >= lowest:
            lowest = value
        seconds.append(spent)
        best.append(lowest)
    return Anytime(
        study=study.record.study,
        problem=study.record.problem,
        optimizer=study.record.optimizer,
        trials=tuple(range(1, len(best) + 1)),
        spent_seconds=tuple(seconds),
        best=tuple(best),
        is_startup=tuple(trial.is_startup for trial in study.finished),
    )


def _wall_seconds(trial: TrialResults) -> float:
    return sum(run.wall_seconds for run in trial.runs)
