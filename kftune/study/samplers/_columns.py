"""Trials as rows of numbers, for models over all dimensions of a space at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kftune.space import Value
from kftune.study.samplers.coordinates import from_unit, to_unit

__all__ = ["Columns", "Points", "Vector", "decode", "encode", "make_columns"]

Vector: TypeAlias = NDArray[np.float64]
"""(n,)"""

Points: TypeAlias = NDArray[np.float64]
"""Rows (n, d): coordinates in [0, 1], categories as 0, 1, …"""

_MOST_STEPS = 20
_NEUTRAL = 0.5


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of points are.

    Attributes:
        n_categories: per column the number of categories, None for a coordinate.
        neutral: what stands in a column that is inactive (d,).
        inactive: points → which of their columns are inactive, of the same shape; None if always all are active.
        steps: column → the coordinates of its values, ascending, where these are few whole numbers.
    """

    n_categories: Sequence[int | None]
    neutral: Sequence[float]
    inactive: Callable[[Points], NDArray[np.bool_]] | None = None
    steps: Mapping[int, NDArray[np.float64]] | None = None

    def settled(self, points: Points) -> Points:
        """Points (n, d) as a trial could have them: steps rounded, inactive columns neutral."""
        points = np.array(points, dtype=np.float64)
        for column, steps in (self.steps or {}).items():
            points[:, column] = steps[np.abs(points[:, column, None] - steps).argmin(axis=1)]
        if self.inactive is not None:
            points = np.where(self.inactive(points), np.asarray(self.neutral), points)
        return points

    def features(self, points: Points) -> NDArray[np.float64]:
        """What a kernel compares: coordinates, and for each category a column that is 1 where it holds."""
        parts = [
            points[:, i, None] if n is None else np.eye(n)[points[:, i].astype(int)]
            for i, n in enumerate(self.n_categories)
        ]
        return np.concatenate(parts, axis=1)

    def by_coordinate(self, by_feature: Vector) -> Vector:
        """Derivatives by the columns from derivatives by the features; 0 for categories."""
        widths = [n or 1 for n in self.n_categories]
        first = np.cumsum([0, *widths[:-1]])
        return np.where([n is None for n in self.n_categories], by_feature[first], 0.0)


def make_columns(
    search_space: Mapping[str, BaseDistribution], conditions: Mapping[str, tuple[str, tuple[Value, ...]]]
) -> Columns:
    """The columns of a search space.

    Args:
        search_space: every dimension of more than one value, conditional ones included.
        conditions: conditional dimension → another one before it, and the values of that which activate it.
    """
    names = list(search_space)
    gates = [
        (names.index(name), names.index(other), values)
        for name, (other, values) in conditions.items()
        if name in search_space and other in search_space
    ]

    def inactive(points: Points) -> NDArray[np.bool_]:
        mask = np.zeros(points.shape, dtype=np.bool_)
        for column, other, values in gates:  # in the space's order: what others depend on comes first
            controlling = search_space[names[other]]
            holds = [_value(controlling, coordinate) in values for coordinate in points[:, other]]
            mask[:, column] = mask[:, other] | ~np.array(holds)
        return mask

    return Columns(
        n_categories=[_n_categories(distribution) for distribution in search_space.values()],
        neutral=[_neutral(distribution) for distribution in search_space.values()],
        inactive=inactive if gates else None,
        steps={i: steps for i, d in enumerate(search_space.values()) if (steps := _steps(d)) is not None},
    )


def encode(search_space: Mapping[str, BaseDistribution], params: Mapping[str, Any]) -> list[float]:
    """A trial's ``params`` as a row; dimensions that it has not are neutral."""
    row = []
    for name, distribution in search_space.items():
        if name not in params:
            row.append(_neutral(distribution))
        elif isinstance(distribution, CategoricalDistribution):
            row.append(float(distribution.to_internal_repr(params[name])))
        else:
            row.append(to_unit(distribution, params[name]))
    return row


def decode(search_space: Mapping[str, BaseDistribution], point: NDArray[np.float64]) -> dict[str, Any]:
    """The values of a row."""
    return {
        name: _value(distribution, coordinate)
        for (name, distribution), coordinate in zip(search_space.items(), point, strict=True)
    }


def _value(distribution: BaseDistribution, coordinate: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[round(coordinate)]
    return from_unit(distribution, coordinate)


def _n_categories(distribution: BaseDistribution) -> int | None:
    return len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else None


def _neutral(distribution: BaseDistribution) -> float:
    """What stands for a dimension that is inactive."""
    return 0.0 if isinstance(distribution, CategoricalDistribution) else _NEUTRAL


def _steps(distribution: BaseDistribution) -> NDArray[np.float64] | None:
    if not isinstance(distribution, FloatDistribution | IntDistribution) or distribution.step is None:
        return None
    n = round((distribution.high - distribution.low) / distribution.step) + 1
    if n > _MOST_STEPS:
        return None
    values = [distribution.low + i * distribution.step for i in range(n)]
    return np.array([to_unit(distribution, value) for value in values])
