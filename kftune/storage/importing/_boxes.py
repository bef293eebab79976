"""The box that a sweep has searched, from the values that it has tried."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, pstdev

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kftune.space import Value

__all__ = ["box"]

_LOG_FROM = 50.0  # positive numbers that span this factor were meant on a logarithmic scale
_LONGEST_LADDER = 12  # more different values than these were drawn, not chosen


def box(configurations: Sequence[dict[str, Value]]) -> tuple[dict[str, BaseDistribution], dict[str, Value]]:
    """What was varied, and what all have alike; the configurations' values are changed to those of their box.

    A box reaches from the smallest to the largest value. It is on a log scale where these are positive and a factor of
    50 apart, where a few values are a ladder of equal factors (0.01, 0.03, 0.1), and for batch sizes. Whole numbers
    become real ones where a column has both; batch sizes and periods are whole however they are written (``64.0``).

    Args:
        configurations: the hyperparameters of each trial.

    Returns:
        Distributions of what was varied, and the values of what was not.
    """
    distributions: dict[str, BaseDistribution] = {}
    fixed: dict[str, Value] = {}
    for name in dict.fromkeys(name for params in configurations for name in params):
        values = [params[name] for params in configurations if name in params]
        if _is_whole(name, values):
            values = [int(value) for value in values]  # type: ignore[arg-type]  # they are numbers
        different = list(dict.fromkeys(values))
        if len(different) == 1 and len(values) == len(configurations):
            fixed[name] = different[0]
            continue
        distributions[name] = _distribution(values, is_batch_size=_is_batch_size(name))
        for params in configurations:
            if name in params:
                params[name] = _as_sampled(distributions[name], params[name])
    return distributions, fixed


def _is_batch_size(name: str) -> bool:
    return "batch" in name.lower()


def _is_whole(name: str, values: Sequence[Value]) -> bool:
    """Whether a column counts something, by its name and values: tables write 64.0 if another cell is empty."""
    return (_is_batch_size(name) or name.endswith("_every")) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and value == int(value)
        for value in values
    )


def _distribution(values: Sequence[Value], *, is_batch_size: bool) -> BaseDistribution:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return CategoricalDistribution(tuple(dict.fromkeys(str(value) for value in values)))
    low, high = min(numbers), max(numbers)
    log = low > 0 and (high / low >= _LOG_FROM or is_batch_size or _is_ladder(numbers))
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _is_ladder(numbers: Sequence[float]) -> bool:
    """Whether few positive values are more evenly spaced by factors than by differences."""
    rungs = sorted(set(numbers))
    if not 3 <= len(rungs) <= _LONGEST_LADDER:
        return False
    gaps, factors = [b - a for a, b in pairwise(rungs)], [b / a - 1 for a, b in pairwise(rungs)]
    return pstdev(factors) / fmean(factors) < pstdev(gaps) / fmean(gaps)


def _as_sampled(distribution: BaseDistribution, value: Value) -> Value:
    if isinstance(distribution, CategoricalDistribution):
        return str(value)
    assert isinstance(value, int | float)  # of a column of numbers
    return float(value) if isinstance(distribution, FloatDistribution) else int(value)
