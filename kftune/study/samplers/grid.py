"""The full grid, in an order shuffled by the seed, and what is added to it where the best value lies on an edge."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kftune.errors import UsageError
from kftune.space import Categorical, Dimension, Float, Space, Value, from_dict
from kftune.study.samplers._entry import SamplerEntry
from kftune.study.samplers._observed import is_given, store_point, stored_point
from kftune.study.samplers.coordinates import distribution, distributions, without_single

Configuration: TypeAlias = dict[str, Value]
"""Values by sampled name; inactive dimensions are absent."""

_Key: TypeAlias = tuple[tuple[str, str], ...]

_MAX_SIZE = 100_000
_TOLERANCE = 1e-12  # relative; a bound written as 0.3 should admit 3·10⁻¹ however it was computed


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


def _key(configuration: Mapping[str, Any]) -> _Key:
    """What tells two configurations apart, whatever their last bits."""
    shown = ((name, f"{v:.12g}" if isinstance(v, float) else repr(v)) for name, v in configuration.items())
    return tuple(sorted(shown))


def _shuffled(configurations: Sequence[Configuration], seed: int) -> list[Configuration]:
    # RandomState: numpy promises that its stream never changes.
    generator = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    return [configurations[i] for i in generator.permutation(len(configurations))]


def _configurations(space: Space, points: int) -> tuple[Configuration, ...]:
    """Every configuration by sampled names; a dimension that is inactive in one is absent from it."""
    return _all_configurations(json.dumps(space.to_dict()), points)


# A sampler is made for every ask, its grid should not be. Spaces hold dictionaries, which cannot be keys.
@functools.lru_cache(maxsize=8)
def _all_configurations(space_json: str, points: int) -> tuple[Configuration, ...]:
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
) -> Iterator[Configuration]:
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
    """The grid's configurations in shuffled order, then those of the grids that it grows into (:func:`order`).

    Trials that were given (enqueued) are left out of the count. Optuna's own sampler cannot be used by ask and tell: it
    stops the study when the grid is done, which only ``optimize`` may.

    Args:
        space: what to search.
        seed: of the shuffling.
        points: see :func:`axis`.
        extend: steps by which an axis may grow to either side.
        widest: the space whose bounds the grid may not leave.
    """

    def __init__(self, space: Space, *, seed: int, points: int, extend: int, widest: Space) -> None:
        self._space = space
        self._seed = seed
        self._points = points
        self._extend = extend
        self._widest = widest
        self._search_space = without_single(distributions(widest))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every dimension with more than one value."""
        return self._search_space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The trial's configuration."""
        if is_given(trial, search_space):
            return {}
        configuration = stored_point(trial)
        if configuration is None:
            configuration = self._configuration(study, trial)
            # What the grid grows into may look different once the trials that are running now have ended.
            store_point(study, trial, configuration)
        return {name: value for name, value in configuration.items() if name in search_space}

    def _configuration(self, study: optuna.Study, trial: FrozenTrial) -> Configuration:
        earlier = [other for other in study.get_trials(deepcopy=False) if other.number < trial.number]
        own = [other for other in earlier if not is_given(other)]
        configurations = order(
            self._space,
            points=self._points,
            extend=self._extend,
            widest=self._widest,
            seed=self._seed,
            trials=own,
            maximize=study.direction == StudyDirection.MAXIMIZE,
        )
        taken = {_key(other.params) for other in own}
        first_new = (c for c in configurations if _key(c) not in taken)
        return next(first_new, configurations[len(own) % len(configurations)])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refused.

        Raises:
            ValueError: always; what is not in the space has no grid.
        """
        raise ValueError(f"the grid has no dimension {param_name!r}")


def order(
    space: Space,
    *,
    points: int,
    extend: int,
    widest: Space,
    seed: int,
    trials: Sequence[FrozenTrial],
    maximize: bool = False,
) -> list[Configuration]:
    """The configurations that a study tries, as far as its results so far tell.

    The grid comes first. When all of it has been begun and its best value lies at the end of an axis of floats on a
    log scale, that axis gets the next 1 or 3 times a power of ten, and the new configurations follow, those nearest to
    the best one first; and so on, by at most ``extend`` steps to either side and within the bounds of ``widest``.

    Args:
        space: the grid's.
        points: see :func:`axis`.
        extend: steps by which an axis may grow to either side.
        widest: the space whose bounds are not left.
        seed: of the shuffling.
        trials: those that were not given.
        maximize: whether large values are good.
    """
    axes = {name: axis(dimension, points=points) for name, dimension in space.dimensions.items()}
    configurations = _shuffled(_configurations(space, points), seed)
    begun = {_key(trial.params) for trial in trials}
    sign = -1 if maximize else 1
    values: dict[_Key, float] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            values.setdefault(_key(trial.params), sign * trial.value)
    steps: Counter[tuple[str, bool]] = Counter()
    while all(_key(configuration) in begun for configuration in configurations):
        known = [configuration for configuration in configurations if _key(configuration) in values]
        if not known:
            break
        best = min(known, key=lambda configuration: values[_key(configuration)])
        if not _grow(axes, best, space=space, widest=widest, steps=steps, extend=extend):
            break
        seen = {_key(configuration) for configuration in configurations}
        walk = itertools.islice(_walk(space, list(space.dimensions), axes, dict(space.fixed)), _MAX_SIZE)
        new = [configuration for configuration in walk if _key(configuration) not in seen]
        configurations += sorted(new, key=functools.partial(_distance, best, space=space, axes=axes))
    return configurations


def _grow(
    axes: dict[str, list[Value]],
    best: Configuration,
    *,
    space: Space,
    widest: Space,
    steps: Counter[tuple[str, bool]],
    extend: int,
) -> bool:
    """Lengthen the axes at whose ends ``best`` lies, in place; False if there is none that may be."""
    grown = False
    for name, dimension in space.dimensions.items():
        value = best.get(dimension.sampled_name(name))
        if not (isinstance(dimension, Float) and dimension.log and len(axes[name]) > 1) or value is None:
            continue
        limits = distribution(widest.dimensions[name])
        assert isinstance(limits, FloatDistribution)
        for upwards in (False, True):
            next_value = _next(float(axes[name][-1 if upwards else 0]), upwards)  # type: ignore[arg-type]  # a Float's
            inside = limits.low * (1 - _TOLERANCE) <= next_value <= limits.high * (1 + _TOLERANCE)
            if value != axes[name][-1 if upwards else 0] or steps[name, upwards] >= extend or not inside:
                continue
            next_value = min(max(next_value, limits.low), limits.high)
            axes[name] = [*axes[name], next_value] if upwards else [next_value, *axes[name]]
            steps[name, upwards] += 1
            grown = True
    return grown


def _next(value: float, upwards: bool) -> float:
    """The next 1 or 3 times a power of ten above or below ``value``."""
    exponent = math.floor(math.log10(value))
    candidates = [float(f"{digit}e{e}") for e in range(exponent - 1, exponent + 2) for digit in (1, 3)]
    if upwards:
        return min(c for c in candidates if c > value * (1 + _TOLERANCE))
    return max(c for c in candidates if c < value * (1 - _TOLERANCE))


def _distance(
    best: Configuration, configuration: Configuration, *, space: Space, axes: Mapping[str, list[Value]]
) -> int:
    """In steps along the axes; a dimension that only one of the two has counts as one."""
    total = 0
    for name, dimension in space.dimensions.items():
        sampled = dimension.sampled_name(name)
        present = [each for each in (best, configuration) if sampled in each]
        if len(present) == 2 and not isinstance(dimension, Categorical):
            total += abs(axes[name].index(best[sampled]) - axes[name].index(configuration[sampled]))
        else:
            total += len(present) == 1 or (len(present) == 2 and best[sampled] != configuration[sampled])
    return total


def widened(space: Space, options: Mapping[str, Any]) -> Space:
    """The space with the bounds that its grid may grow to, as long as no hyperparameter has a limit before them."""
    return Space({name: _widened(d, options["extend"]) for name, d in space.dimensions.items()}, space.fixed)


def _widened(dimension: Dimension, extend: int) -> Dimension:
    if not (isinstance(dimension, Float) and dimension.log) or dimension.low == dimension.high or not extend:
        return dimension
    values = [float(value) for value in axis(dimension, points=2)]  # type: ignore[arg-type]  # a Float's
    low, high = values[0], values[-1]
    for _ in range(extend):
        low, high = _next(low, False), _next(high, True)
    own = distribution(dimension)
    assert isinstance(own, FloatDistribution)
    low, high = min(low, own.low), max(high, own.high)
    if dimension.complement:
        return replace(dimension, low=1 - min(high, 1.0), high=1 - low)
    return replace(dimension, low=low, high=high)


def _count(*, space: Space, widest: Space, seed: int, trials: Sequence[FrozenTrial], points: int, extend: int) -> int:
    own = [trial for trial in trials if not is_given(trial)]
    found = order(space, points=points, extend=extend, widest=widest, seed=seed, trials=own)
    on_grid = {_key(configuration) for configuration in found}
    # Trials taken over from a study of another grid come on top.
    elsewhere = sum(trial.state.is_finished() and _key(trial.params) not in on_grid for trial in own)
    return len(found) + len(trials) - len(own) + elsewhere


def _make(
    *,
    space: Space,
    seed: int,
    trial_number: int,
    n_startup_trials: int,
    points: int,
    extend: int,
    widest: Space,
) -> GridSampler:
    return GridSampler(space, seed=seed, points=points, extend=extend, widest=widest)


ENTRIES = (
    SamplerEntry(
        name="grid",
        make=_make,
        summary="1·10ⁱ and 3·10ⁱ on log scales, further out while the best is on an edge; `points` values on others",
        source="kftune",
        options={"points": 5, "extend": 2},
        allowed={"points": (2, 1000), "extend": (0, 20)},
        random_start=False,
        widen=widened,
        count=_count,
    ),
)
