"""Acquisition functions of a Gaussian process, as logarithms, and where they are largest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy import optimize, special
from scipy.stats import qmc

from kftune.study.samplers._columns import Columns, Points, Vector
from kftune.study.samplers._gaussian_process import GaussianProcess

__all__ = ["Acquisition", "expected_improvement", "improvement_probability", "lower_bound", "maximize"]

Acquisition: TypeAlias = Callable[[Vector, Vector], tuple[Vector, Vector, Vector]]
"""(means, standard deviations) of points → the function, and its derivatives by either; all of shape (n,)."""

_N_SPREAD = 1024  # a power of two, as Sobol' points want
_N_CENTRES, _N_NEAR = 8, 64
_N_STARTS = 3  # of each kind
_WIDTHS = (0.01, 0.2)
_MAX_ITERATIONS = 60


def expected_improvement(least: float, *, noise: float = 0.0) -> Acquisition:
    """log E[max(least − f, 0)], exact far out in the tail too (Ament et al. 2023, eq. 9).

    Args:
        least: what is to be improved on.
        noise: standard deviation of observations. The function is multiplied by 1 − noise/√(deviation² + noise²), which
            is small where one more observation would teach little (Huang et al. 2006): without it, the best
            configuration would be proposed over and over.
    """

    def function(mean: Vector, deviation: Vector) -> tuple[Vector, Vector, Vector]:
        z = (least - mean) / deviation
        log_h = _log_h(z)
        by_mean = -np.exp(special.log_ndtr(z) - log_h) / deviation
        by_deviation = np.exp(_log_density(z) - log_h) / deviation
        total = np.hypot(deviation, noise)
        # 1 − noise/total without cancellation, and its logarithm's derivative.
        taught = deviation**2 / (total * (total + noise))
        value = np.log(deviation) + log_h + np.log(taught)
        return value, by_mean, by_deviation + noise * deviation / (total**3 * taught)

    return function


def improvement_probability(least: float) -> Acquisition:
    """log P(f < least)."""

    def function(mean: Vector, deviation: Vector) -> tuple[Vector, Vector, Vector]:
        z = (least - mean) / deviation
        value = special.log_ndtr(z)
        slope = np.exp(_log_density(z) - value) / deviation
        return value, -slope, -slope * z

    return function


def lower_bound(weight: float) -> Acquisition:
    """weight · deviation − mean."""

    def function(mean: Vector, deviation: Vector) -> tuple[Vector, Vector, Vector]:
        return weight * deviation - mean, np.full_like(mean, -1.0), np.full_like(mean, weight)

    return function


def _log_density(z: Vector) -> Vector:
    density: Vector = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    return density


def _log_h(z: Vector) -> Vector:
    """log(φ(z) + zΦ(z)) without cancellation."""
    near = np.maximum(z, -1.0)
    far = np.minimum(z, -1.0)
    plain: Vector = np.log(np.exp(_log_density(near)) + near * special.ndtr(near))
    ratio = far * np.sqrt(np.pi / 2) * special.erfcx(-far / np.sqrt(2))  # zΦ(z)/φ(z), which tends to −1
    # Below −10⁴ the sum 1 + ratio is rounding alone; it is 1/z² up to terms of 1/z⁴.
    tail: Vector = _log_density(far) + np.where(far > -1e4, np.log(np.maximum(1 + ratio, 1e-300)), -2 * np.log(-far))
    found: Vector = np.where(z > -1, plain, tail)
    return found


def maximize(model: GaussianProcess, acquisition: Acquisition, *, columns: Columns, seed: int) -> Vector:
    """A point (d,) at which the function is largest, as far as local searches from many starts can tell.

    Starts are the best of points spread over the whole box and of points near those whose modelled values are least:
    the second find narrow valleys that the first miss.

    Args:
        model: of the function that is minimized.
        acquisition: what is maximized.
        columns: of the points.
        seed: of the starts.
    """
    rng = np.random.default_rng(seed)
    spread = columns.settled(_spread(columns, rng))
    near = columns.settled(_near(model, columns, rng))
    starts = []
    for candidates in (spread, near):
        values = acquisition(*model.predict(candidates))[0]
        starts += [candidates[i] for i in np.argsort(-values, kind="stable")[:_N_STARTS]]
    ends = columns.settled(np.array([_climb(model, acquisition, columns, start) for start in starts]))
    candidates = np.concatenate([ends, np.array(starts)])
    values = acquisition(*model.predict(candidates))[0]
    best: Vector = candidates[int(np.argmax(values))]
    return best


def _spread(columns: Columns, rng: np.random.Generator) -> Points:
    """Low-discrepancy points over the box."""
    points: Points = qmc.Sobol(len(columns.n_categories), scramble=True, rng=rng).random(_N_SPREAD)
    for i, n in enumerate(columns.n_categories):
        if n is not None:
            points[:, i] = np.minimum(np.floor(points[:, i] * n), n - 1)
    return points


def _near(model: GaussianProcess, columns: Columns, rng: np.random.Generator) -> Points:
    """Points around the observed ones whose modelled values are least, some of their columns changed."""
    mean, _ = model.predict(model.points)
    centres = model.points[np.argsort(mean, kind="stable")[:_N_CENTRES]]
    points = np.repeat(centres, _N_NEAR, axis=0)
    n, d = points.shape
    changed = rng.random((n, d)) < max(0.5, 1 / d)
    widths = np.exp(rng.uniform(np.log(_WIDTHS[0]), np.log(_WIDTHS[1]), size=(n, 1)))
    moved = np.clip(points + widths * rng.standard_normal((n, d)), 0.0, 1.0)
    for i, n_choices in enumerate(columns.n_categories):
        if n_choices is not None:
            moved[:, i] = rng.integers(n_choices, size=n)
    return np.where(changed, moved, points)


def _climb(model: GaussianProcess, acquisition: Acquisition, columns: Columns, start: Vector) -> Vector:
    """The top above ``start``, along the columns that are continuous and active there."""
    frozen = np.array([n is not None for n in columns.n_categories])
    frozen[list(columns.steps or ())] = True
    if columns.inactive is not None:
        frozen |= columns.inactive(start[None])[0]
    free = np.flatnonzero(~frozen)
    if not len(free):
        return start

    def fall(x: Vector) -> tuple[float, Vector]:
        point = start.copy()
        point[free] = x
        mean, deviation, mean_slope, deviation_slope = model.predict_with_slopes(point)
        value, by_mean, by_deviation = acquisition(np.array([mean]), np.array([deviation]))
        slope = by_mean[0] * mean_slope + by_deviation[0] * deviation_slope
        return -float(value[0]), -slope[free]

    found = optimize.minimize(
        fall,
        start[free],
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, 1.0)] * len(free),
        options={"maxiter": _MAX_ITERATIONS},
    )
    top = start.copy()
    top[free] = np.clip(found.x, 0.0, 1.0)
    return top
