"""The full grid, in an order shuffled by the seed."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from kftune.errors import UsageError
from kftune.space import Categorical, Dimension, Float, Space, Value, from_dict
from kftune.study.samplers._coordinates import distribution, distributions, without_single
from kftune.study.samplers._entry import SamplerEntry

_MAX_SIZE = 100_000
_TOLERANCE = 1e-12  # relative; a bound written as 0.3 should admit 3·10⁻¹ however it was computed


def grid_size(space: Space, options: Mapping[str, Any]) -> int:
    """Number of different configurations on the grid; a longer study would repeat them.

    Args:
        space: what to search.
        options: of the sampler ``grid``.

    Raises:
        UsageError: a wrong option, or there are more than 100,000.
    """
    (entry,) = ENTRIES
    return len(_configurations(space, entry.resolve_options(options)["points"]))


def axis(dimension: Dimension, *, points: int) -> list[Value]:
    """A dimension's sampled values on the grid.

    1 and 3 times the powers of ten in its range for a float on a log scale (its ends if fewer than two of them are),
    ``points`` values in equal steps, or equal ratios on a log scale, rounded, for the others; all choices.
    """
    if isinstance(dimension, Categorical):
        return list(dimension.choices)
    sampled = distribution(dimension)
    assert isinstance(sampled, FloatDistribution | IntDistribution)
    low, high = float(sampled.low), float(sampled.high)
    if sampled.single():
        values = [low]
    elif isinstance(dimension, Float) and dimension.log:
        values = _ones_and_threes(low, high)
    elif dimension.log:
        values = list(np.geomspace(low, high, points))
    else:
        values = list(np.linspace(low, high, points))
    if isinstance(dimension, Float):
        return [float(value) for value in values]
    return [*sorted({round(value) for value in values})]


def _ones_and_threes(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    candidates = [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 3)]
    inside = [min(max(c, low), high) for c in candidates if low * (1 - _TOLERANCE) <= c <= high * (1 + _TOLERANCE)]
    return inside if len(inside) >= 2 else [low, high]


def _configurations(space: Space, points: int) -> tuple[dict[str, Value], ...]:
    """Every configuration by sampled names; a dimension that is inactive in one is absent from it."""
    return _all_configurations(json.dumps(space.to_dict()), points)


# A sampler is made for every ask, its grid should not be. Spaces hold dictionaries, which cannot be keys.
@functools.lru_cache(maxsize=8)
def _all_configurations(space_json: str, points: int) -> tuple[dict[str, Value], ...]:
    space = from_dict(json.loads(space_json))
    axes = {name: axis(dimension, points=points) for name, dimension in space.dimensions.items()}
    walk = _walk(space, list(space.dimensions), axes, dict(space.fixed))
    found = tuple(itertools.islice(walk, _MAX_SIZE + 1))
    if len(found) > _MAX_SIZE:
        raise UsageError(
            f"sampler 'grid': more than {_MAX_SIZE} configurations; fix some dimensions, or use random or qmc"
        )
    return found


def _walk(
    space: Space, names: list[str], axes: dict[str, list[Value]], params: dict[str, Value]
) -> Iterator[dict[str, Value]]:
    """Configurations over the dimensions in ``names``, given resolved values of those before."""
    if not names:
        yield {}
        return
    name, *rest = names
    dimension = space.dimensions[name]
    if dimension.when is not None and not dimension.when.holds(params):
        yield from _walk(space, rest, axes, params)
        return
    for value in axes[name]:
        resolved = {**params, name: dimension.resolve(value, params)}
        for tail in _walk(space, rest, axes, resolved):
            yield {dimension.sampled_name(name): value, **tail}


class GridSampler(optuna.samplers.BaseSampler):
    """Trial k is the k-th configuration of the shuffled grid, from the start again after the last.

    Optuna's own cannot be used by ask and tell: it stops the study when the grid is done, which only ``optimize`` may.

    Args:
        space: what to search.
        seed: of the shuffling.
        points: see :func:`axis`.
    """

    def __init__(self, space: Space, *, seed: int, points: int) -> None:
        self._configurations = _configurations(space, points)
        # RandomState: numpy promises that its stream never changes.
        self._order = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed))).permutation(
            len(self._configurations)
        )
        self._search_space = without_single(distributions(space))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every dimension with more than one value."""
        return self._search_space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The trial's configuration."""
        configuration = self._configurations[self._order[trial.number % len(self._order)]]
        return {name: value for name, value in configuration.items() if name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refused.

        Raises:
            ValueError: always; what is not in the space has no grid.
        """
        raise ValueError(f"the grid has no dimension {param_name!r}")


def _make(*, space: Space, seed: int, trial_number: int, n_startup_trials: int, points: int) -> GridSampler:
    return GridSampler(space, seed=seed, points=points)


ENTRIES = (
    SamplerEntry(
        name="grid",
        make=_make,
        summary="every combination of 1·10ⁱ and 3·10ⁱ on log scales, `points` values on others",
        source="kftune",
        options={"points": 5},
        allowed={"points": (2, 1000)},
    ),
)
