"""The model and the acquisition functions against GPy, numerical integration and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import GPy
import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy import integrate, stats

from kftune.study.samplers._acquisition import (
    Acquisition,
    expected_improvement,
    improvement_probability,
    lower_bound,
    maximize,
)
from kftune.study.samplers._columns import Columns, Points, Vector, decode, encode, make_columns
from kftune.study.samplers._gaussian_process import GaussianProcess, Hyperparameters, fit, negative_log_likelihood

PLAIN = Columns(n_categories=(None, None, None), neutral=(0.5, 0.5, 0.5))
KNOWN = Hyperparameters(variance=1.3, lengths=np.array([0.3, 0.7, 2.0]), noise=0.02)
SEARCH_SPACE = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "schedule": CategoricalDistribution(("none", "linear", "step")),
    "rate": FloatDistribution(0.0, 1.0),
    "layers": IntDistribution(1, 4),
}
MIXED = make_columns(SEARCH_SPACE, {"rate": ("schedule", ("linear",)), "layers": ("schedule", ("linear", "step"))})


def data(n: int = 25, seed: int = 0) -> tuple[Points, Vector]:
    points = np.random.default_rng(seed).random((n, 3))
    values = ((points - 0.4) ** 2) @ np.array([4.0, 1.0, 0.1])
    return points, (values - values.mean()) / values.std()


def test_predictions_are_gpys() -> None:
    points, values = data()
    ours = GaussianProcess(points, values, columns=PLAIN, hyperparameters=KNOWN)
    kernel = GPy.kern.Matern52(3, variance=KNOWN.variance, lengthscale=KNOWN.lengths, ARD=True)
    theirs = GPy.models.GPRegression(points, values[:, None], kernel=kernel, noise_var=KNOWN.noise)
    new = np.random.default_rng(1).random((7, 3))
    mean, deviation = ours.predict(new)
    expected_mean, expected_variance = theirs.predict(new, include_likelihood=False)
    # GPy adds 10⁻⁸ to the diagonal as we do; what is left is rounding, times a condition number of 10³.
    np.testing.assert_allclose(mean, expected_mean[:, 0], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(deviation**2, expected_variance[:, 0], rtol=1e-7, atol=1e-10)
    mean_slopes, variance_slopes = theirs.predictive_gradients(new)
    for i, point in enumerate(new):
        one_mean, one_deviation, by_mean, by_deviation = ours.predict_with_slopes(point)
        assert (one_mean, one_deviation) == pytest.approx((mean[i], deviation[i]), rel=1e-9)
        np.testing.assert_allclose(by_mean, mean_slopes[i, :, 0], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(2 * one_deviation * by_deviation, variance_slopes[i], rtol=1e-6, atol=1e-9)


def test_the_likelihood_is_gpys() -> None:
    points, values = data()
    squares = np.stack([(column[:, None] - column) ** 2 for column in points.T])
    logarithms = np.log([KNOWN.variance, *KNOWN.lengths, KNOWN.noise])
    value, slope = negative_log_likelihood(logarithms, squares=squares, values=values)
    kernel = GPy.kern.Matern52(3, variance=KNOWN.variance, lengthscale=KNOWN.lengths, ARD=True)
    theirs = GPy.models.GPRegression(points, values[:, None], kernel=kernel, noise_var=KNOWN.noise)
    assert value == pytest.approx(-theirs.log_likelihood(), rel=1e-9)
    # GPy's gradient is by the hyperparameters themselves.
    np.testing.assert_allclose(slope, -theirs.gradient * np.exp(logarithms), rtol=1e-6, atol=1e-9)


def test_fitted_lengths_tell_what_matters() -> None:
    points, values = data(40)
    found = fit(points, values + 0.1 * np.random.default_rng(2).standard_normal(40))
    assert found.lengths[0] < found.lengths[1] < found.lengths[2]
    assert found.noise == pytest.approx(0.01, rel=0.8)


def test_many_observations_are_fitted_by_a_part_of_them() -> None:
    points, values = data(220)
    few, many = fit(points[:149], values[:149]), fit(points, values)
    assert few.lengths == pytest.approx(many.lengths, rel=0.4)
    # Conditioning takes all of them: at every observed point the model is sure.
    _, deviation = GaussianProcess(points, values, columns=PLAIN, hyperparameters=KNOWN).predict(points)
    assert deviation.max() < KNOWN.noise**0.5


def test_an_assumed_observation_lowers_the_deviation_and_leaves_the_mean() -> None:
    points, values = data()
    model = GaussianProcess(points, values, columns=PLAIN, hyperparameters=KNOWN)
    pending, elsewhere = np.array([[0.9, 0.1, 0.5]]), np.random.default_rng(3).random((5, 3))
    after = model.with_assumed(pending)
    assert after.predict(pending)[1] < 0.6 * model.predict(pending)[1]
    np.testing.assert_allclose(after.predict(elsewhere)[0], model.predict(elsewhere)[0], atol=1e-6)
    assert len(model.points) + 1 == len(after.points)


def test_inactive_columns_and_unreachable_steps_change_nothing() -> None:
    rows = [
        {"lr": 0.01, "schedule": "none"},
        {"lr": 0.1, "schedule": "linear", "rate": 0.3, "layers": 2},
        {"lr": 0.3, "schedule": "step", "layers": 4},
    ]
    points = np.array([encode(SEARCH_SPACE, row) for row in rows])
    np.testing.assert_array_equal(MIXED.settled(points), points)
    assert decode(SEARCH_SPACE, points[1]) == {"lr": pytest.approx(0.1), "schedule": "linear", "rate": 0.3, "layers": 2}
    moved = points + np.array([[0, 0, 0.3, 0.2], [0, 0, 0, 0.05], [0, 0, -0.4, 0.05]])
    np.testing.assert_allclose(MIXED.settled(moved), points)
    model = GaussianProcess(points, np.array([0.0, 1.0, -1.0]), columns=MIXED, hyperparameters=_mixed_known())
    for point in points:
        _, _, by_mean, _ = model.predict_with_slopes(point)
        assert by_mean[1] == 0  # a category has no slope


def _mixed_known() -> Hyperparameters:
    return Hyperparameters(variance=1.0, lengths=np.full(6, 0.5), noise=0.01)


def _numerical(f: Callable[[float], float], x: float) -> float:
    return (f(x + 1e-6) - f(x - 1e-6)) / 2e-6


@pytest.mark.parametrize(
    "acquisition",
    [expected_improvement(0.2), expected_improvement(0.2, noise=0.3), improvement_probability(0.2), lower_bound(2.0)],
    ids=["EI", "EI with noise", "MPI", "LCB"],
)
@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 0.4), (-1.0, 0.2), (3.0, 0.1), (0.2, 1.0), (30.0, 0.5)])
def test_slopes_of_acquisition_functions(acquisition: Acquisition, mean: float, deviation: float) -> None:
    def value(m: float, d: float) -> float:
        return float(acquisition(np.array([m]), np.array([d]))[0][0])

    _, by_mean, by_deviation = acquisition(np.array([mean]), np.array([deviation]))
    # Central differences: h²/6 times a third derivative of up to 10⁴, and rounding of 10⁻¹⁶·|value|/h.
    scale = 1 + abs(value(mean, deviation))
    assert by_mean[0] == pytest.approx(_numerical(lambda m: value(m, deviation), mean), rel=1e-5, abs=1e-8 * scale)
    assert by_deviation[0] == pytest.approx(_numerical(lambda d: value(mean, d), deviation), rel=1e-5, abs=1e-8 * scale)


@pytest.mark.parametrize(("mean", "deviation"), [(0.5, 0.4), (-1.0, 0.2), (0.2, 1.0), (1.5, 0.3)])
def test_expected_improvement_is_an_integral(mean: float, deviation: float) -> None:
    def integrand(f: float) -> float:
        return float((0.2 - f) * stats.norm.pdf(f, mean, deviation))

    expected, _ = integrate.quad(integrand, mean - 12 * deviation, 0.2, epsabs=1e-14)
    found = expected_improvement(0.2)(np.array([mean]), np.array([deviation]))[0]
    assert np.exp(found[0]) == pytest.approx(expected, rel=1e-6)


def test_expected_improvement_far_out() -> None:
    """φ(z)/z² · (1 − 3/z² + 15/z⁴ − …) for z → −∞; the next term is 105/z⁶."""
    z = -np.array([50.0, 1e3, 9e3, 2e4, 1e8])
    found = expected_improvement(0.0)(-z, np.ones(5))[0]
    series = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) - 2 * np.log(-z) + np.log1p(-3 / z**2 + 15 / z**4)
    np.testing.assert_allclose(found - series, 0, atol=1e-6 + 1e-15 * z.max() ** 2)


def test_the_top_is_found_where_a_fine_grid_has_it() -> None:
    points, values = data(20, seed=5)
    model = GaussianProcess(points[:, :2], values, columns=_two(), hyperparameters=_two_known())
    acquisition = expected_improvement(float(values.min()))
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 201)] * 2), axis=-1).reshape(-1, 2)
    best = acquisition(*model.predict(grid))[0].max()
    found = maximize(model, acquisition, columns=_two(), seed=0)
    assert acquisition(*model.predict(found[None]))[0][0] >= best - 1e-9
    np.testing.assert_array_equal(found, maximize(model, acquisition, columns=_two(), seed=0))


def _two() -> Columns:
    return Columns(n_categories=(None, None), neutral=(0.5, 0.5))


def _two_known() -> Hyperparameters:
    return Hyperparameters(variance=1.0, lengths=np.array([0.3, 0.4]), noise=0.01)


def test_the_top_of_a_mixed_space_is_a_point_that_a_trial_can_have() -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.random(30), rng.integers(0, 3, 30), rng.random(30), rng.random(30)])
    # Best in the category 1, with the second coordinate at 0.8.
    values = np.abs(points[:, 1] - 1) + (points[:, 2] - 0.8) ** 2 + (points[:, 0] - 0.5) ** 2
    model = GaussianProcess(
        points, (values - values.mean()) / values.std(), columns=MIXED, hyperparameters=_mixed_known()
    )
    found = maximize(model, lower_bound(0.0), columns=MIXED, seed=0)
    np.testing.assert_array_equal(MIXED.settled(found[None])[0], found)
    assert decode(SEARCH_SPACE, found)["schedule"] == "linear"
    assert found[2] == pytest.approx(0.8, abs=0.2)  # ten observations in this category
