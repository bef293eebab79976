"""Search boxes in unit coordinates, as the sampler saw them: 0 at the lower edge, 1 at the upper one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kftune.space import Categorical, Dimension, Float, Int, from_dict
from kftune.storage.repository import StudyRecord

__all__ = ["Edges", "coordinates", "dimensions_of", "distributions_of", "searched_edges"]


@dataclass(frozen=True, kw_only=True)
class Edges:
    """A numeric dimension as the sampler sees it.

    Attributes:
        name: of the hyperparameter.
        sampled_name: of what is varied, e.g. ``"damping/lr"`` or ``"1-momentum"``.
        low: lower edge of what is varied.
        high: upper edge.
        log: whether its logarithm is searched.
        is_integer: whether it takes whole numbers only.
        dimension: the dimension itself.
    """

    name: str
    sampled_name: str
    low: float
    high: float
    log: bool
    is_integer: bool
    dimension: Float | Int

    def coordinate(self, value: float) -> float:
        """Where a sampled value lies: 0 at ``low``, 1 at ``high``; outside of [0, 1] if it is outside of the box."""
        low, high, value = (math.log(v) if self.log else float(v) for v in (self.low, self.high, value))
        return (value - low) / (high - low)

    def value(self, coordinate: float) -> float:
        """The sampled value at a coordinate."""
        low, high = (math.log(v) if self.log else float(v) for v in (self.low, self.high))
        position = low + coordinate * (high - low)
        return math.exp(position) if self.log else position


def dimensions_of(record: StudyRecord) -> dict[str, Dimension]:
    """The dimensions of a study's search space, by name."""
    return dict(from_dict({"dimensions": {}, "fixed": {}} | dict(record.space)).dimensions)


def searched_edges(record: StudyRecord) -> dict[str, Edges]:
    """The numeric dimensions of a study that have more than one value, by sampled name."""
    found = {}
    for name, dimension in dimensions_of(record).items():
        if isinstance(dimension, Categorical) or dimension.low >= dimension.high:
            continue
        sampled_name = dimension.sampled_name(name)
        low, high = dimension.low, dimension.high
        if isinstance(dimension, Float) and dimension.complement:
            low, high = round(1 - high, 12), round(1 - low, 12)  # as kftune.space rounds them
        found[sampled_name] = Edges(
            name=name,
            sampled_name=sampled_name,
            low=low,
            high=high,
            log=dimension.log,
            is_integer=isinstance(dimension, Int),
            dimension=dimension,
        )
    return found


def coordinates(edges: Edges, sampled: Sequence[Mapping[str, Any]]) -> list[float]:
    """Coordinates of the configurations in which the dimension is active."""
    return [edges.coordinate(float(values[edges.sampled_name])) for values in sampled if edges.sampled_name in values]


def distributions_of(record: StudyRecord) -> dict[str, BaseDistribution]:
    """Sampled name → Optuna distribution, of the dimensions with more than one value."""
    found: dict[str, BaseDistribution] = {}
    for name, dimension in dimensions_of(record).items():
        if isinstance(dimension, Categorical) and len(dimension.choices) > 1:
            found[dimension.sampled_name(name)] = CategoricalDistribution(dimension.choices)
    for sampled_name, edges in searched_edges(record).items():
        if edges.is_integer:
            found[sampled_name] = IntDistribution(int(edges.low), int(edges.high), log=edges.log)
        else:
            found[sampled_name] = FloatDistribution(edges.low, edges.high, log=edges.log)
    return found
