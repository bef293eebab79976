"""Search spaces as samplers see them: Optuna distributions, unit coordinates, and reproducible uniform numbers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from kftune.space import Categorical, Dimension, Space, Value, with_condition


def uniform(seed: int, trial_number: int, name: str) -> float:
    """A number in [0, 1) that depends on these three only, on every machine and with every version of numpy."""
    bits = np.random.SeedSequence((seed, trial_number, zlib.crc32(name.encode()))).generate_state(1, np.uint64)
    return float(bits[0] >> np.uint64(11)) / 2**53


def derived_seed(seed: int, trial_number: int, name: str = "") -> int:
    """A seed in {0, …, 2³²−1} that depends on these three only."""
    return int(np.random.SeedSequence((seed, trial_number, zlib.crc32(name.encode()), 1)).generate_state(1)[0])


def active_dimensions(space: Space) -> dict[str, Dimension]:
    """The dimensions that can be active.

    A condition on a fixed value, or on a dimension of one value, is settled: met, or the dimension is dropped.
    """
    kept: dict[str, Dimension] = {}
    settled = dict(space.fixed)
    for name, dimension in space.dimensions.items():
        when = dimension.when
        if when is not None and when.name in settled:
            if when.holds(settled):
                kept[name] = with_condition(dimension, None)
        elif when is None or when.name in kept:
            kept[name] = dimension
        if isinstance(dimension, Categorical) and len(dimension.choices) == 1 and dimension.when is None:
            settled[name] = dimension.choices[0]
    return kept


def conditions(space: Space) -> dict[str, tuple[str, tuple[Value, ...]]]:
    """Sampled name of a conditional dimension → the other's sampled name, and the values that activate it."""
    kept = active_dimensions(space)
    return {
        dimension.sampled_name(name): (kept[when.name].sampled_name(when.name), when.values)
        for name, dimension in kept.items()
        if (when := dimension.when) is not None
    }


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Sampled name → Optuna distribution of every dimension that can be active, conditional ones included."""
    return {
        dimension.sampled_name(name): distribution(dimension) for name, dimension in active_dimensions(space).items()
    }


def distribution(dimension: Dimension) -> BaseDistribution:
    """The Optuna distribution that ``dimension.suggest`` asks a trial for."""
    recorder = _Recorder()
    dimension.suggest("", recorder)
    (recorded,) = recorder.distributions
    return recorded


class _Recorder:
    """Takes a trial's place in ``Dimension.suggest`` and notes what it is asked for."""

    def __init__(self) -> None:
        self.distributions: list[BaseDistribution] = []

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.distributions.append(FloatDistribution(low, high, log=log, step=step))
        return low

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self.distributions.append(IntDistribution(low, high, log=log, step=step))
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.distributions.append(CategoricalDistribution(choices))
        return choices[0]


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value is one of the distribution's."""
    return distribution._contains(distribution.to_internal_repr(value))


def to_unit(distribution: BaseDistribution, value: Any) -> float:
    """Coordinate in [0, 1] of a value, on the distribution's scale; values outside are moved to the edge.

    The k-th of n categories or steps is at the centre of its cell, (k + ½)/n on a linear scale.
    """
    if isinstance(distribution, CategoricalDistribution):
        return (distribution.to_internal_repr(value) + 0.5) / len(distribution.choices)
    low, high = _edges(distribution)
    position = math.log(value) if _is_log(distribution) else value
    return min(max((position - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def from_unit(distribution: BaseDistribution, coordinate: float) -> Any:
    """The value at a coordinate in [0, 1]; a Python float, int, or choice."""
    if isinstance(distribution, CategoricalDistribution):
        n = len(distribution.choices)
        return distribution.choices[min(int(coordinate * n), n - 1)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = _edges(distribution)
    position = low + float(coordinate) * (high - low)
    value = math.exp(position) if _is_log(distribution) else position
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def _is_log(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, FloatDistribution | IntDistribution) and distribution.log


def _edges(distribution: BaseDistribution) -> tuple[float, float]:
    """Ends of the scale. Steps get half a step more at each end, so that all cells are equally wide."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    half = distribution.step / 2 if distribution.step is not None else 0.0
    low, high = distribution.low - half, distribution.high + half
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


def without_single(search_space: Mapping[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """What there is to search: distributions of more than one value (Optuna fills in the others itself)."""
    return {name: distribution for name, distribution in search_space.items() if not distribution.single()}
