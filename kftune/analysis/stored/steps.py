"""A run's objective as a function of its time: what was last measured is what is known.

Nothing is interpolated: between two evaluations the earlier one holds, so that a loss "at t" is one that a run which
was stopped at t could have reported. As for a trial's value, no loss counts as worse than the untrained model's, and
a run that failed is worth the untrained model from the moment it failed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from kftune.analysis.stored.curves import Across
from kftune.analysis.stored.results import TrialResults
from kftune.objective import Objective, point_objective
from kftune.results import Outcome, RunResult
from kftune.storage.repository import RunRecord

__all__ = ["Floats", "Steps", "mean_steps", "run_steps", "runs_steps", "trial_steps"]

Floats: TypeAlias = npt.NDArray[np.float64]
_ENDED_WELL = (Outcome.COMPLETED, Outcome.PRUNED)


class Steps(NamedTuple):
    """A step function: ``values[i]`` from ``at[i]`` on, until ``at[i + 1]``. ``at`` rises."""

    at: Floats
    values: Floats

    def __call__(self, places: Floats) -> Floats:
        """Its values at some places; NaN before the first step."""
        index = np.searchsorted(self.at, places, side="right") - 1
        return np.where(index >= 0, self.values[np.maximum(index, 0)], np.nan)


def run_steps(
    result: RunResult, objective: Objective, *, untrained: float | None = None, across: Across = "train_seconds"
) -> Steps | None:
    """One run's objective over its train seconds or updates.

    Args:
        result: the run, with its curve.
        objective: which.
        untrained: the untrained model's, for a run that ended before its own first evaluation.
        across: what the places are.

    Returns:
        None for a crashed run, for one that failed while no untrained value is known, and without a point.
    """
    if result.outcome is Outcome.CRASHED:
        return None
    losses = [point_objective(point, objective) for point in result.curve]
    if losses and result.curve[0].update == 0:
        untrained = losses[0]
    cap = math.inf if untrained is None else untrained
    capped = [min(loss, cap) if math.isfinite(loss) else cap for loss in losses]
    known = [(point, value) for point, value in zip(result.curve, capped, strict=True) if value < math.inf]
    at = [float(getattr(point, across)) for point, _ in known]
    values = [value for _, value in known]
    if untrained is not None and result.outcome not in _ENDED_WELL:
        ended = result.train_seconds if across == "train_seconds" else float(result.updates)
        at.append(max([ended, *at]))
        values.append(untrained)
    if untrained is not None and (not at or at[0] > 0):
        at.insert(0, 0.0)
        values.insert(0, untrained)
    if not at or (untrained is None and result.outcome not in _ENDED_WELL):
        return None
    return Steps(np.array(at), np.array(values))


def mean_steps(steps: Sequence[Steps]) -> Steps:
    """The mean of step functions, from where all of them have begun."""
    places = np.unique(np.concatenate([each.at for each in steps]))
    places = places[places >= max(each.at[0] for each in steps)]
    return Steps(places, np.mean([each(places) for each in steps], axis=0))


def runs_steps(
    runs: Sequence[RunRecord], objective: Objective, *, untrained: Mapping[int, float], across: Across
) -> Steps | None:
    """The mean over runs of one configuration; None if one of them crashed or there is none."""
    steps = [run_steps(run.result, objective, untrained=untrained.get(run.repeat), across=across) for run in runs]
    known = [each for each in steps if each is not None]
    return mean_steps(known) if known and len(known) == len(steps) else None


def trial_steps(
    trial: TrialResults, objective: Objective, *, untrained: Mapping[int, float], across: Across = "train_seconds"
) -> Steps | None:
    """A trial's value over the time of its runs, at their end its value; None as in :func:`runs_steps`."""
    return runs_steps(trial.runs, objective, untrained=untrained, across=across)
