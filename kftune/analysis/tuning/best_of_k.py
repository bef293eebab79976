"""Tunability: the loss to expect from the best of k random configurations.

An optimizer whose third random configuration is good needs little tuning; one that needs a hundred is only as good as
the time there is to tune it (Dodge et al. 2019, Show Your Work; Sivaprasad et al. 2020, Optimizer Benchmarking Needs
to Account for Hyperparameter Tuning). From n independent, identically distributed values y₍₁₎ ≤ … ≤ y₍ₙ₎ the
expectation of the best of k of them is estimated without bias by the mean over all subsets of size k,

    Ê_k = Σᵢ C(n−i, k−1) / C(n, k) · y₍ᵢ₎,

in which i is the smallest of the subset. Only trials drawn at random count (the start-up trials of samplers that learn,
all of random search, none of a grid or a Sobol' sequence): what a sampler proposes after it has learnt, and what a
design prescribes, is neither independent nor identically distributed. Configurations that failed count as the untrained
model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from kftune.analysis.stored.results import FileResults, StudyResults, TrialResults
from kftune.analysis.stored.steps import Floats

__all__ = ["BestOfK", "best_of_k", "best_of_k_curves", "best_of_k_weights", "startup_values"]

_N_RESAMPLES = 1000
_MAX_PLACES = 60
_MAX_CELLS = 2_000_000  # of one resampled block, to bound the memory


@dataclass(frozen=True, kw_only=True)
class BestOfK:
    """Expected best of k against k.

    Attributes:
        study: full name; empty if the values came from elsewhere.
        problem: label.
        optimizer: label.
        n: values it is made of.
        k: places: 1, 2, …, n, thinned out evenly on a log scale where n is large.
        expected: Ê_k.
        low: lower end of the band.
        high: upper end. The band is pointwise, 95 %, by the percentile bootstrap over trials, and ends at k = n/2 (NaN
            beyond): a resample does not know what the best of nearly all values would be.
    """

    study: str
    problem: str
    optimizer: str
    n: int
    k: tuple[int, ...]
    expected: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def best_of_k_weights(n: int, k: int) -> Floats:
    """Weights of the sorted values in Ê_k, shape (n,); they add up to 1.

    They follow from w₁ = k/n by w_{i+1}/w_i = (n−i−k+1)/(n−i), so no binomial coefficient is formed and none overflows.

    Raises:
        ValueError: k is not in {1, …, n}.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k must be from 1 to n={n}, got {k!r}")
    i = np.arange(1, n)
    ratios = np.maximum(n - i - k + 1, 0) / (n - i)
    weights: Floats = k / n * np.concatenate([[1.0], np.cumprod(ratios)])
    return weights


def best_of_k(
    values: Sequence[float], *, level: float = 0.95, n_resamples: int = _N_RESAMPLES, seed: int = 0
) -> BestOfK | None:
    """Ê_k of values that are independent and identically distributed, with its band; None if there are none.

    Args:
        values: finite losses, in any order.
        level: of the band at each k.
        n_resamples: of the bootstrap.
        seed: of its random numbers.
    """
    n = len(values)
    if n == 0:
        return None
    y = np.sort(np.asarray(values, dtype=float))
    places = _places(n)
    weights = np.stack([best_of_k_weights(n, k) for k in places])
    low, high = _band(y, weights, level, n_resamples, np.random.default_rng(seed))
    beyond = np.array(places) > max(1, n // 2)
    low[beyond] = high[beyond] = math.nan
    return BestOfK(
        study="",
        problem="",
        optimizer="",
        n=n,
        k=places,
        expected=tuple((weights @ y).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
    )


def best_of_k_curves(file: FileResults, *, n_resamples: int = _N_RESAMPLES) -> list[BestOfK]:
    """One curve per study that has a finished start-up trial with a known value, in the order of the file.

    Args:
        file: with curves.
        n_resamples: of the bootstrap.
    """
    found = []
    for study in file.studies:
        curve = best_of_k(startup_values(study), n_resamples=n_resamples)
        if curve is not None:
            record = study.record
            found.append(replace(curve, study=record.study, problem=record.problem, optimizer=record.optimizer))
    return found


def startup_values(study: StudyResults) -> list[float]:
    """Values of a study's finished start-up trials, in the order they were tried.

    One without a value (a run crashed) counts as the untrained model; while no run has measured that, it is left out.
    """
    untrained = fmean(study.untrained.values()) if study.untrained else None
    values = [_value(trial, untrained) for trial in study.finished if trial.is_startup]
    return [value for value in values if value is not None and math.isfinite(value)]


def _value(trial: TrialResults, untrained: float | None) -> float | None:
    return untrained if trial.trial.value is None else trial.trial.value


def _places(n: int) -> tuple[int, ...]:
    if n <= _MAX_PLACES:
        return tuple(range(1, n + 1))
    return tuple(int(k) for k in np.unique(np.geomspace(1, n, _MAX_PLACES).round().astype(int)))


def _band(
    y: Floats, weights: Floats, level: float, n_resamples: int, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Quantiles of Ê_k over resamples of the values, by place."""
    n, block = len(y), max(1, _MAX_CELLS // len(y))
    estimates = []
    for start in range(0, n_resamples, block):
        chosen = np.sort(rng.integers(n, size=(min(block, n_resamples - start), n)), axis=1)
        estimates.append(y[chosen] @ weights.T)
    low, high = np.quantile(np.concatenate(estimates), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
