"""What a smaller budget would have shown: losses and best configuration at every t up to the budget.

At t a run is worth what it last measured at or before t (see :mod:`kftune.analysis.stored.steps`), a trial the mean
over its runs. All configurations were proposed for the whole budget: a search at the smaller one would have looked
elsewhere, and a schedule would have been shorter. So every number here is of a study "tuned for T", seen at t ≤ T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kftune.analysis.stored.curves import Across
from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.analysis.stored.steps import Floats, trial_steps

__all__ = ["StudyOverBudget", "budget_places", "over_budget", "tuned_for"]


@dataclass(frozen=True, kw_only=True)
class StudyOverBudget:
    """A study's trials at several budgets.

    Attributes:
        study: full name.
        problem: label.
        optimizer: label.
        across: what the places are.
        at: the places, rising.
        trials: numbers of the settled trials that have curves.
        losses: shape (places, trials); NaN before a run's first evaluation.
        best: at each place the number of the trial with the lowest loss; None where none is known. Only trials that
            can be best are: not those that were pruned or failed later on in every run.
        best_losses: its loss; NaN where there is none.
    """

    study: str
    problem: str
    optimizer: str
    across: Across
    at: tuple[float, ...]
    trials: tuple[int, ...]
    losses: Floats
    best: tuple[int | None, ...]
    best_losses: tuple[float, ...]


def tuned_for(file: FileResults, *, across: Across = "train_seconds") -> float | None:
    """The budget T for which everything in the file was tuned; None if it is in the other unit."""
    budget = file.config.get("budget") or {}
    value = budget.get("seconds" if across == "train_seconds" else "updates")
    return None if value is None else float(value)


def budget_places(file: FileResults, *, across: Across = "train_seconds", n: int = 41) -> tuple[float, ...]:
    """Equally spaced places from 0 to the budget; to the longest run where the budget is in the other unit."""
    end = tuned_for(file, across=across)
    if end is None:
        ends = [
            float(getattr(run.result.curve[-1], across)) for s in file.studies for run in s.runs if run.result.curve
        ]
        end = max(ends, default=0.0)
    return tuple(np.linspace(0.0, end, n).tolist())


def over_budget(study: StudyResults, places: Sequence[float], *, across: Across = "train_seconds") -> StudyOverBudget:
    """A study's settled trials at some places.

    The last evaluation of a run ends a little past the budget (by its overshoot). So that the last place shows what the
    search saw, a place at or beyond the study's own budget takes every run to its end.

    Args:
        study: with curves.
        places: rising.
        across: train seconds or updates.
    """
    record, steps, usable = study.record, [], []
    can_be_best = {trial.trial.number for trial in study.ranked()}
    numbers = []
    for trial in study.finished:
        found = trial_steps(trial, study.objective, untrained=study.untrained, across=across)
        if found is not None:
            numbers.append(trial.trial.number)
            steps.append(found)
            usable.append(trial.trial.number in can_be_best)
    x = _to_the_end(study, np.asarray(places, dtype=float), across)
    losses = np.stack([each(x) for each in steps], axis=1) if steps else np.empty((len(x), 0))
    comparable = np.where(np.array(usable, dtype=bool)[None, :] & np.isfinite(losses), losses, np.inf)
    index = comparable.argmin(axis=1) if any(usable) else np.zeros(len(x), dtype=int)
    lowest = comparable[np.arange(len(x)), index] if steps else np.full(len(x), np.inf)
    known = np.isfinite(lowest)
    return StudyOverBudget(
        study=record.study,
        problem=record.problem,
        optimizer=record.optimizer,
        across=across,
        at=tuple(float(place) for place in places),
        trials=tuple(numbers),
        losses=losses,
        best=tuple(numbers[i] if ok else None for i, ok in zip(index, known, strict=True)),
        best_losses=tuple(float(v) if ok else math.nan for v, ok in zip(lowest, known, strict=True)),
    )


def _to_the_end(study: StudyResults, x: Floats, across: Across) -> Floats:
    budget = (study.record.config.get("budget") or {}).get("seconds" if across == "train_seconds" else "updates")
    return x if budget is None else np.where(x >= float(budget), np.inf, x)
