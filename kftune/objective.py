"""The number a run contributes to its trial's value."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from kftune.results import CurvePoint, Outcome, RunResult

__all__ = ["OBJECTIVES", "Objective", "point_objective", "run_objective"]

Objective: TypeAlias = Literal["test_loss", "train_loss", "test_error"]
OBJECTIVES: tuple[Objective, ...] = ("test_loss", "train_loss", "test_error")
"""All are minimised; ``test_error`` is 1 - accuracy."""


def point_objective(point: CurvePoint, objective: Objective) -> float:
    """The objective at one point of a curve.

    Raises:
        ValueError: ``test_error`` for a problem without accuracy.
    """
    if objective == "train_loss":
        return point.train_loss
    if objective == "test_loss":
        return point.test_loss
    if point.accuracy is None:
        raise ValueError("objective test_error needs a problem with an accuracy")
    return 1 - point.accuracy


def run_objective(result: RunResult, objective: Objective, *, untrained: float | None = None) -> float | None:
    """The last evaluation's objective, never above the untrained model's.

    Runs that diverged, ran out of memory or were timed out count as the untrained model: no loss counts as worse.

    Args:
        result: the run.
        objective: what is minimised.
        untrained: the untrained model's objective, for a run whose curve does not begin with it: it ended before its
            own first evaluation, or was made elsewhere.

    Returns:
        None for a crashed run (it says nothing about the configuration), or if it failed and no untrained value is
        known.
    """
    if result.outcome is Outcome.CRASHED:
        return None
    if result.curve and result.curve[0].update == 0:
        untrained = point_objective(result.curve[0], objective)
    if not result.curve or result.outcome not in (Outcome.COMPLETED, Outcome.PRUNED):
        return untrained
    final = point_objective(result.curve[-1], objective)
    if not math.isfinite(final):
        return untrained
    return final if untrained is None else min(final, untrained)
