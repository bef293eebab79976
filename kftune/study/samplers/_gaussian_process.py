"""The Gaussian process behind the sampler ``gpyopt``: GPyOpt's, with a length scale and a prior per dimension.

GPy, which GPyOpt is built on, is the oracle of its tests. It spends most of an evaluation on its own bookkeeping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, stats

from kftune.study.samplers._columns import Columns, Points, Vector

__all__ = ["GaussianProcess", "Hyperparameters", "fit", "negative_log_likelihood", "warped_values"]

_MOST_FITTED = 150
_MAX_ITERATIONS = 60
_STARTS = ((0.5, 0.03), (1.5, 0.3))  # length scale and noise variance
_LENGTH, _LENGTH_SPREAD = 0.4, 0.8  # the first times √d: distances in d dimensions grow like it
_NOISE, _NOISE_SPREAD = 0.01, 1.0
_VARIANCE_SPREAD = 1.0
_LEAST_VARIANCE = 1e-12
_JITTER = 1e-8


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Of a Gaussian process with a Matérn 5/2 kernel.

    Attributes:
        variance: of the function.
        lengths: length scale of every feature.
        noise: variance of the noise.
    """

    variance: float
    lengths: Vector
    noise: float


def fit(features: NDArray[np.float64], values: Vector) -> Hyperparameters:
    """The most probable hyperparameters, their logarithms being normally distributed beforehand.

    Of more than 150 observations, 150 are looked at: the best third of that number, the others evenly spaced in the
    order in which they were made.

    Args:
        features: (n, d).
        values: (n,), of mean 0 and variance 1.

    Raises:
        numpy.linalg.LinAlgError: the covariance cannot be factorized.
    """
    chosen = _chosen(values)
    x, y = features[chosen], values[chosen]
    d = x.shape[1]
    squares = np.stack([(column[:, None] - column) ** 2 for column in x.T])
    centre = np.array([0.0, *[np.log(_LENGTH * np.sqrt(d))] * d, np.log(_NOISE)])
    spread = np.array([_VARIANCE_SPREAD, *[_LENGTH_SPREAD] * d, _NOISE_SPREAD])

    def surprise(logarithms: Vector) -> tuple[float, Vector]:
        """The negative logarithm of the posterior density, but for a constant, and its gradient."""
        value, slope = negative_log_likelihood(logarithms, squares=squares, values=y)
        off = (logarithms - centre) / spread
        return value + 0.5 * float(off @ off), slope + off / spread

    starts = [np.array([0.0, *[np.log(length)] * d, np.log(noise)]) for length, noise in _STARTS]
    fits = [
        optimize.minimize(
            surprise, start, jac=True, method="L-BFGS-B", bounds=_bounds(d), options={"maxiter": _MAX_ITERATIONS}
        )
        for start in starts
    ]
    found = np.exp(min(fits, key=lambda fitted: float(fitted.fun)).x)
    return Hyperparameters(variance=float(found[0]), lengths=found[1:-1], noise=float(found[-1]))


def _bounds(d: int) -> list[tuple[float, float]]:
    return [(np.log(low), np.log(high)) for low, high in [(1e-3, 1e3), *[(1e-2, 1e3)] * d, (1e-6, 1e2)]]


def negative_log_likelihood(
    logarithms: Vector, *, squares: NDArray[np.float64], values: Vector
) -> tuple[float, Vector]:
    """−log p(values) and its gradient (Rasmussen & Williams 2006, eqs. 2.30 and 5.9).

    Args:
        logarithms: of the function's variance, the length scales (d) and the noise's variance.
        squares: squared differences of the observed points by feature (d, n, n).
        values: (n,).

    Raises:
        numpy.linalg.LinAlgError: the covariance cannot be factorized.
    """
    variance, noise = np.exp(logarithms[0]), np.exp(logarithms[-1])
    n = len(values)
    weights = np.exp(-2 * logarithms[1:-1])
    root = np.sqrt(5 * np.tensordot(weights, squares, axes=1))
    decay = variance * np.exp(-root)
    kernel = (1 + root + root**2 / 3) * decay
    covariance = kernel.copy()
    covariance[np.diag_indices(n)] += noise + _JITTER
    factor = linalg.cholesky(covariance, lower=True, check_finite=False)
    inverse = linalg.cho_solve((factor, True), np.eye(n), check_finite=False)
    solved = inverse @ values
    value = 0.5 * float(values @ solved) + float(np.log(np.diag(factor)).sum()) + 0.5 * n * np.log(2 * np.pi)
    pull = 0.5 * (inverse - np.outer(solved, solved))  # the value's derivative by the covariance
    by_length = (squares.reshape(len(squares), -1) @ (pull * (5 / 3) * (1 + root) * decay).ravel()) * weights
    slope = np.array([np.sum(pull * kernel), *by_length, noise * np.trace(pull)])
    return value, slope


def _chosen(values: Vector) -> NDArray[np.intp]:
    if len(values) <= _MOST_FITTED:
        return np.arange(len(values))
    order = np.argsort(values, kind="stable")
    n_best = _MOST_FITTED // 3
    others = np.sort(order[n_best:])
    spaced = others[np.linspace(0, len(others) - 1, _MOST_FITTED - n_best).astype(int)]
    return np.sort(np.concatenate([order[:n_best], spaced]))


class GaussianProcess:
    """The posterior of a function, given values at points.

    Args:
        points: (n, d), observed.
        values: (n,), of mean 0 and variance 1.
        columns: of the points.
        hyperparameters: fitted to the data if None.

    Attributes:
        points: as observed, settled.

    Raises:
        numpy.linalg.LinAlgError: the covariance cannot be factorized.
    """

    def __init__(
        self, points: Points, values: Vector, *, columns: Columns, hyperparameters: Hyperparameters | None = None
    ) -> None:
        self.points = columns.settled(points)
        self._values = values
        self._columns = columns
        features = columns.features(self.points)
        self.hyperparameters = hyperparameters or fit(features, values)
        self._scaled = features / self.hyperparameters.lengths
        covariance = self._kernel(self._distances(self._scaled))
        covariance[np.diag_indices_from(covariance)] += self.hyperparameters.noise + _JITTER
        # The inverse makes a prediction one product; with the noise on the diagonal it is accurate enough.
        self._inverse = linalg.cho_solve(linalg.cho_factor(covariance, lower=True), np.eye(len(values)))
        self._weights = self._inverse @ values

    def with_assumed(self, points: Points) -> GaussianProcess:
        """The same with further points that gave what is now expected of them (Ginsbourger et al. 2010)."""
        return GaussianProcess(
            np.concatenate([self.points, points]),
            np.concatenate([self._values, self.predict(points)[0]]),
            columns=self._columns,
            hyperparameters=self.hyperparameters,
        )

    def predict(self, points: Points) -> tuple[Vector, Vector]:
        """Mean and standard deviation of the function, without the noise, at points (m, d); each (m,)."""
        scaled = self._columns.features(points) / self.hyperparameters.lengths
        cross = self._kernel(self._distances(scaled))
        variance = self.hyperparameters.variance - np.einsum("ij,ij->i", cross @ self._inverse, cross)
        return cross @ self._weights, np.sqrt(np.maximum(variance, _LEAST_VARIANCE))

    def predict_with_slopes(self, point: Vector) -> tuple[float, float, Vector, Vector]:
        """Mean and standard deviation at a point (d,), and their derivatives by its columns (d,); 0 by categories."""
        (scaled,) = self._columns.features(point[None]) / self.hyperparameters.lengths
        offsets = scaled - self._scaled
        root = np.sqrt(5 * (offsets**2).sum(axis=1))
        decay = self.hyperparameters.variance * np.exp(-root)
        cross = (1 + root + root**2 / 3) * decay
        slopes = -(5 / 3) * ((1 + root) * decay)[:, None] * offsets / self.hyperparameters.lengths  # (n, features)
        solved = self._inverse @ cross
        variance = self.hyperparameters.variance - cross @ solved
        deviation = float(np.sqrt(max(variance, _LEAST_VARIANCE)))
        mean_slope, deviation_slope = self._weights @ slopes, -(solved @ slopes) / deviation
        columns = self._columns
        return (
            float(cross @ self._weights),
            deviation,
            columns.by_coordinate(mean_slope),
            columns.by_coordinate(deviation_slope),
        )

    def _distances(self, scaled: NDArray[np.float64]) -> NDArray[np.float64]:
        squares = (scaled**2).sum(axis=1)[:, None] + (self._scaled**2).sum(axis=1) - 2 * scaled @ self._scaled.T
        distances: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0.0))
        return distances

    def _kernel(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """Matérn's with ν = 5/2 (Rasmussen & Williams 2006, eq. 4.17)."""
        root = np.sqrt(5) * distances
        found: NDArray[np.float64] = self.hyperparameters.variance * (1 + root + root**2 / 3) * np.exp(-root)
        return found


def warped_values(values: Sequence[float]) -> Vector:
    """Observed values as the model should see them: of mean 0 and variance 1, without outliers.

    Infinite values count as the largest or smallest finite one. If no value is negative, logarithms are taken, zeros
    as half the smallest positive value. What is worse than the median is then placed by its rank, as in a normal
    distribution as wide as the better half: how bad a bad configuration is should not decide what the model makes of
    the good ones (Song et al. 2024, "The Vizier Gaussian process bandit algorithm"). Ties, such as diverged
    configurations, stay ties.
    """
    observed = np.array(values, dtype=np.float64)
    finite = observed[np.isfinite(observed)]
    if not len(finite):
        return np.zeros_like(observed)
    observed = np.clip(observed, finite.min(), finite.max())
    positive = observed[observed > 0]
    if len(positive) and observed.min() >= 0:
        observed = np.log(np.maximum(observed, positive.min() / 2))
    median = np.median(observed)
    worse = observed > median
    width = np.sqrt(np.mean((observed[~worse] - median) ** 2))
    if worse.any() and width > 0:
        shares = stats.rankdata(observed[worse]) / (worse.sum() + 1)
        observed[worse] = median + width * stats.norm.ppf(0.5 + 0.5 * shares)
    deviation = observed.std()
    standardized: Vector = (observed - observed.mean()) / (deviation if deviation > 0 else 1.0)
    return standardized
