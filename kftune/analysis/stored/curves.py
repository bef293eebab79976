"""Learning curves over repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from kftune.results import CurvePoint, RunResult

__all__ = ["Across", "Measure", "RepeatedCurve", "measured", "repeated_curve"]

Floats: TypeAlias = npt.NDArray[np.float64]
Across: TypeAlias = Literal["train_seconds", "update"]
Measure: TypeAlias = Literal["train_loss", "test_loss", "accuracy"]


class RepeatedCurve(NamedTuple):
    """Mean, lowest and highest of several runs' curves at common places ``x``."""

    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def measured(point: CurvePoint, measure: Measure) -> float:
    """One quantity of a curve point; NaN where it has none."""
    value = point.accuracy if measure == "accuracy" else getattr(point, measure)
    return math.nan if value is None else float(value)


def repeated_curve(results: Sequence[RunResult], *, across: Across, measure: Measure) -> RepeatedCurve | None:
    """Mean and range over runs of one configuration.

    The runs are not evaluated at the very same seconds or updates, so each is interpolated linearly to the places where
    any of them was, between the latest first and the earliest last one. Points that are not finite are left out.

    Args:
        results: runs; those without two finite points are ignored.
        across: what ``x`` is.
        measure: what is averaged.

    Returns:
        None if no run has two finite points, or there is no place between all runs' ends.
    """
    finite = [_finite(result, across, measure) for result in results]
    usable = [(x, y) for x, y in finite if len(x) > 1]
    if not usable:
        return None
    first, last = max(x[0] for x, _ in usable), min(x[-1] for x, _ in usable)
    places = np.unique(np.concatenate([x for x, _ in usable]))
    places = places[(places >= first) & (places <= last)]
    if not len(places):
        return None
    values = np.stack([np.interp(places, x, y) for x, y in usable])
    return RepeatedCurve(*(tuple(row.tolist()) for row in (places, values.mean(0), values.min(0), values.max(0))))


def _finite(result: RunResult, across: Across, measure: Measure) -> tuple[Floats, Floats]:
    x = np.array([getattr(point, across) for point in result.curve], dtype=float)
    y = np.array([measured(point, measure) for point in result.curve], dtype=float)
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]
