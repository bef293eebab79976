"""Whether one optimizer is better than another, from runs on common seeds.

The confirming runs of all optimizers have the same seeds, so two optimizers are compared seed by seed: the
observation is the difference of the two losses on one seed, and what initial weights and data order do to both alike
drops out.

With the five or ten seeds of practice the procedure matters. For two optimizers that are equally good a test at 5 %
should reject in 5 % of the comparisons. It rejected (4,000 simulated comparisons; noise normal, or log-normal with σ
= 0.5)

====================================  =========  =============  ==========  ==============
procedure on the differences          n=5 normal  n=5 lognormal  n=10 normal  n=10 lognormal
====================================  =========  =============  ==========  ==============
percentile bootstrap                  16 %       17 %           10 %        11 %
studentized bootstrap                 5 %        6 %            5 %         6 %
Student's t                           5 %        4 %            5 %         4 %
====================================  =========  =============  ==========  ==============

and an exact sign-flip permutation test of five differences cannot go below p = 1/16. So Student's t is what is used:
a difference of two equally distributed losses is symmetric however skewed they are, which is what t needs most. The
paired bootstrap is there for comparisons of 20 seeds and more, where it may be preferred for losses of different
spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy import stats

from kftune.analysis.stored.results import FileResults
from kftune.analysis.trust.confirmed import ConfirmedResult, confirmed_results
from kftune.analysis.trust.intervals import Interval, PairedT, holm, paired_t
from kftune.analysis.trust.superiority import Superiority, probability_of_superiority

__all__ = ["Method", "PairComparison", "compare_pairs", "holm", "paired_bootstrap", "paired_difference"]

Method: TypeAlias = Literal["t", "bootstrap"]
_N_RESAMPLES = 9999


@dataclass(frozen=True, kw_only=True)
class PairComparison:
    """Two optimizers on one problem.

    Attributes:
        problem: label.
        budget_factor: of the confirming runs.
        first: label of the optimizer with the lower mean on the common seeds.
        second: label of the other.
        n_seeds: common to both.
        difference: mean of first − second; not positive.
        interval: of the difference, 95 %; not corrected for the number of pairs.
        p_value: two-sided, that the difference is 0.
        p_holm: corrected for all pairs of the file at this budget factor.
        superiority: P(first beats second).
    """

    problem: str
    budget_factor: float
    first: str
    second: str
    n_seeds: int
    difference: float
    interval: Interval
    p_value: float
    p_holm: float
    superiority: Superiority

    @property
    def is_different(self) -> bool:
        """Whether the two differ at 5 %, all pairs of the file taken together."""
        return self.p_holm < 0.05

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"is_different": self.is_different}


def compare_pairs(file: FileResults, *, budget_factor: float = 1.0, method: Method = "t") -> list[PairComparison]:
    """Every pair of optimizers of every problem, from confirming runs on common seeds.

    Args:
        file: with curves.
        budget_factor: which confirming runs.
        method: ``"t"``, or ``"bootstrap"`` for many seeds; see the module.

    Returns:
        Pairs with two common seeds or more, problem by problem; without those of two seeds whose differences show no
        noise at all.
    """
    found = [result for result in confirmed_results(file) if result.budget_factor == budget_factor]
    pairs = [
        pair
        for one, other in combinations(found, 2)
        if one.problem == other.problem and (pair := _compare(one, other, method)) is not None
    ]
    corrected = holm([pair.p_value for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, corrected, strict=True)]


def paired_difference(
    first: Mapping[int, float],
    second: Mapping[int, float],
    *,
    method: Method = "t",
    level: float = 0.95,
    step: float = 0.0,
) -> PairedT | None:
    """Mean of first − second over the keys (seeds) that both have.

    Args:
        first: loss by seed.
        second: loss by seed.
        method: ``"t"`` or ``"bootstrap"``.
        level: of the interval.
        step: of the grid on which the losses lie, as test errors do; 0 for none.

    Returns:
        None with fewer than two common seeds, or with two that differ equally and on no grid.
    """
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    test = paired_t if method == "t" else paired_bootstrap
    return test(differences, level=level, step=step)


def paired_bootstrap(
    differences: Sequence[float], *, level: float = 0.95, step: float = 0.0, seed: int = 0
) -> PairedT | None:
    """Paired bootstrap: BCa interval of the mean difference, and a p-value by resampling under the null hypothesis.

    Differences are resampled, so that a seed's two losses stay together (Efron & Tibshirani 1993, Sections 14.3,
    16.4). For the p-value they are shifted to mean 0. Both trust too much in few differences: see the module.

    Differences that are all equal are :func:`paired_t`'s, which knows what the ``step`` of a grid means for them.

    Returns:
        None with fewer than two differences.
    """
    if len(differences) < 2:
        return None
    d = np.asarray(differences, dtype=float)
    if np.ptp(d) == 0:
        return paired_t(differences, level=level, step=step)
    rng = np.random.default_rng(seed)
    made = stats.bootstrap((d,), np.mean, n_resamples=_N_RESAMPLES, confidence_level=level, method="BCa", rng=rng)
    shifted = (d - d.mean())[rng.integers(len(d), size=(_N_RESAMPLES, len(d)))].mean(axis=1)
    p_value = (1 + np.count_nonzero(np.abs(shifted) >= abs(d.mean()))) / (1 + _N_RESAMPLES)
    interval = (float(made.confidence_interval.low), float(made.confidence_interval.high))
    return PairedT(float(d.mean()), interval, float(p_value))


def _compare(one: ConfirmedResult, other: ConfirmedResult, method: Method) -> PairComparison | None:
    values = {one.optimizer: one.by_repeat(), other.optimizer: other.by_repeat()}
    first, second = one.optimizer, other.optimizer
    # Both steps are multiples of the true one, where there is one.
    test = paired_difference(values[first], values[second], method=method, step=min(one.step, other.step))
    if test is not None and test.mean > 0:
        first, second = second, first
        test = PairedT(-test.mean, (-test.interval[1], -test.interval[0]), test.p_value)
    common = sorted(values[first].keys() & values[second].keys())
    superiority = probability_of_superiority([values[first][r] for r in common], [values[second][r] for r in common])
    if test is None or superiority is None:
        return None
    return PairComparison(
        problem=one.problem,
        budget_factor=one.budget_factor,
        first=first,
        second=second,
        n_seeds=len(common),
        difference=test.mean,
        interval=test.interval,
        p_value=test.p_value,
        p_holm=test.p_value,
        superiority=superiority,
    )
