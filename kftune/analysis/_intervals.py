"""Small-sample means: Student's t, and Holm's correction for several tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple, TypeAlias

from scipy import stats

__all__ = ["Interval", "PairedT", "holm", "mean_interval", "paired_t"]

Interval: TypeAlias = tuple[float, float]


class PairedT(NamedTuple):
    """Mean of differences, its interval, and the two-sided p-value that it is 0."""

    mean: float
    interval: Interval
    p_value: float


def paired_t(differences: Sequence[float], *, level: float = 0.95) -> PairedT | None:
    """One-sample t-test of paired differences (Student 1908); None with fewer than two.

    Differences that are all equal have no noise: the p-value is 0, or 1 if they are all 0.
    """
    n = len(differences)
    if n < 2:
        return None
    mean, error = fmean(differences), stdev(differences) / math.sqrt(n)
    if error == 0:
        return PairedT(mean, (mean, mean), 1.0 if mean == 0 else 0.0)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * error
    return PairedT(mean, (mean - half, mean + half), float(2 * stats.t.sf(abs(mean) / error, n - 1)))


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval | None:
    """Student's t interval of a mean; None with fewer than two values."""
    test = paired_t(values, level=level)
    return None if test is None else test.interval


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
