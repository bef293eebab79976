"""The Gaussian process behind the sampler ``gpyopt``: GPy's regression with a prior on every hyperparameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats

from kftune.study.samplers._columns import Columns, Points, Vector

__all__ = ["GaussianProcess", "Hyperparameters", "fit", "warped_values"]

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
    """The most probable hyperparameters; numpy's global generator is not used.

    Of more than 150 observations, 150 are looked at: the best third of that number, the others evenly spaced in the
    order in which they were made.

    Args:
        features: (n, d).
        values: (n,), of mean 0 and variance 1.

    Raises:
        numpy.linalg.LinAlgError: the covariance cannot be factorized.
    """
    chosen = _chosen(values)
    fits = [_fit_from(features[chosen], values[chosen], *start) for start in _STARTS]
    return min(fits, key=lambda found: found[0])[1]


def _fit_from(x: NDArray[np.float64], y: Vector, length: float, noise: float) -> tuple[float, Hyperparameters]:
    """A local optimum: the negative logarithm of its posterior density, and where it is."""
    import GPy  # slow to import

    d = x.shape[1]
    kernel = GPy.kern.Matern52(d, ARD=True, variance=1.0, lengthscale=np.full(d, length))
    model = GPy.models.GPRegression(x, y[:, None], kernel=kernel, noise_var=noise)
    log_normal = GPy.priors.LogGaussian
    kernel.lengthscale.set_prior(log_normal(np.log(_LENGTH * np.sqrt(d)), _LENGTH_SPREAD), warning=False)
    kernel.variance.set_prior(log_normal(0.0, _VARIANCE_SPREAD), warning=False)
    model.likelihood.variance.set_prior(log_normal(np.log(_NOISE), _NOISE_SPREAD), warning=False)
    model.optimize(optimizer="lbfgsb", max_iters=_MAX_ITERATIONS)
    found = Hyperparameters(
        variance=float(kernel.variance[0]),
        lengths=np.array(kernel.lengthscale, dtype=np.float64),
        noise=float(model.likelihood.variance[0]),
    )
    return float(model.objective_function()), found


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
