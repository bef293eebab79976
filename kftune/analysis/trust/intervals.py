"""Small-sample means: Student's t, and Holm's correction for several tests.

Test errors are shares of a few hundred or thousand examples, and two seeds of two equally good optimizers often differ
by the same number of examples. That says that the noise is below a step of one example, not that there is none: taken
as none, it told two equal optimizers apart (p = 0) in 5 % of the comparisons of two seeds by itself. So the standard
deviation is never taken to be below that of rounding to the step, step / √12 (Sheppard's correction).

Two or three seeds that differ give wide intervals (t is 12.7 for two), whose lower end may be a loss that there cannot
be. The true mean of a loss that is never negative is not negative either, so what of the interval lies below 0 is cut
off (above 1 too, of an error rate), and it covers the truth exactly as often as before. A logarithmic scale would keep
it above 0 as well, but its interval is one of the geometric mean, which is not what is ranked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy import stats

__all__ = ["Interval", "PairedT", "grid_step", "holm", "mean_interval", "paired_t"]

Interval: TypeAlias = tuple[float, float]

_MOST_EXAMPLES = 60_000
_SINGLE_PRECISION = 5e-7  # accuracies are sums of shares in float32
_ALL_EQUAL = 1e-9  # a spread below this part of the mean is that of floating point


class PairedT(NamedTuple):
    """Mean of differences, its interval, and the two-sided p-value that it is 0."""

    mean: float
    interval: Interval
    p_value: float


def grid_step(values: Iterable[float]) -> float:
    """The step of the coarsest grid 1/N, N at most 60,000, on which all values lie; 0 if they lie on none.

    Test errors lie on the grid of the number of test examples, or on one that is coarser by chance if there are few
    values. One value alone lies on too many grids to tell, which counts as none.
    """
    distinct = sorted(set(values))
    if len(distinct) < 2:
        return 0.0
    n = np.arange(1, _MOST_EXAMPLES + 1)
    for value in distinct:
        n = n[np.abs(value * n - np.round(value * n)) <= _SINGLE_PRECISION * n]
        if not len(n):
            return 0.0
    return 1 / int(n[0])


def paired_t(differences: Sequence[float], *, level: float = 0.95, step: float = 0.0) -> PairedT | None:
    """One-sample t-test of paired differences (Student 1908).

    Args:
        differences: one per seed.
        level: of the interval.
        step: of the grid on which the values lie, 0 for none; see the module.

    Returns:
        None with fewer than two, or with two that are equal and on no grid: they show no noise, and cannot show that
        there is none. Three or more such have none: the p-value is 0, or 1 if they are all 0.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, spread = fmean(differences), stdev(differences)
    if spread <= _ALL_EQUAL * abs(mean):
        spread = 0.0
    error = max(spread, step / math.sqrt(12)) / math.sqrt(n)
    if error == 0:
        if n == 2:
            return None
        return PairedT(mean, (mean, mean), 1.0 if mean == 0 else 0.0)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return PairedT(mean, (mean - half, mean + half), float(2 * stats.t.sf(abs(mean) / error, n - 1)))


def mean_interval(
    values: Sequence[float],
    *,
    level: float = 0.95,
    step: float = 0.0,
    possible: Interval = (-math.inf, math.inf),
) -> Interval | None:
    """Student's t interval of a mean, cut off at the least and the largest values that are possible; see the module.

    Args:
        values: one per seed, all within ``possible``.
        level: of the interval.
        step: as :func:`paired_t` takes it.
        possible: least and largest value that there can be.

    Returns:
        None where :func:`paired_t` gives none.
    """
    test = paired_t(values, level=level, step=step)
    if test is None:
        return None
    low, high = test.interval
    return max(low, possible[0]), min(high, possible[1])


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the order given (Holm 1979, A simple sequentially rejective procedure).

    Rejecting those below α errs anywhere with a probability of at most α, however the tests depend on each other.
    """
    m = len(p_values)
    corrected = [0.0] * m
    largest = 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
