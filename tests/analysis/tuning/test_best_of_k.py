import math
from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest

from kftune.analysis.tuning.best_of_k import best_of_k, best_of_k_curves, best_of_k_weights, startup_values
from tests.analysis.memory import UNTRAINED, file, study, trial


def test_it_is_the_mean_over_all_subsets() -> None:
    values = [0.31, 0.12, 5.0, 0.12, 2.5, 0.7]
    found = best_of_k(values)
    assert found is not None
    expected = [np.mean([min(subset) for subset in combinations(values, k)]) for k in range(1, 7)]
    assert found.k == (1, 2, 3, 4, 5, 6)
    assert found.expected == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 7, 60])
def test_the_weights_are_the_formulas(n: int) -> None:
    for k in range(1, n + 1):
        exact = [float(Fraction(comb(n - i, k - 1), comb(n, k))) for i in range(1, n + 1)]
        assert best_of_k_weights(n, k) == pytest.approx(exact, rel=1e-12, abs=1e-300)
    with pytest.raises(ValueError, match="from 1 to n"):
        best_of_k_weights(n, n + 1)


@pytest.mark.parametrize("k", [1, 2, 137, 5000, 9999, 10_000])
def test_ten_thousand_values_lose_no_digits(k: int) -> None:
    n = 10_000
    weights = best_of_k_weights(n, k)
    assert np.all(weights >= 0)
    assert weights.sum() == pytest.approx(1, abs=1e-10)
    # Of the numbers 1 … n the best of k is (n + 1)/(k + 1) on average.
    assert weights @ np.arange(1, n + 1) == pytest.approx((n + 1) / (k + 1), rel=1e-9)


def test_many_values_are_shown_at_few_places() -> None:
    found = best_of_k(np.random.default_rng(0).uniform(size=3000).tolist(), n_resamples=20)
    assert found is not None
    assert found.k[0] == 1
    assert found.k[-1] == 3000
    assert len(found.k) <= 60
    assert np.all(np.diff(found.expected) < 0)


def test_the_band_covers_the_truth() -> None:
    """Uniform losses: the best of k is 1/(k + 1) on average."""
    rng, hits = np.random.default_rng(1), []
    for _ in range(200):
        found = best_of_k(rng.uniform(size=30).tolist(), n_resamples=200)
        assert found is not None
        hits.append([found.low[k - 1] <= 1 / (k + 1) <= found.high[k - 1] for k in (1, 3, 6)])
    assert np.all(np.mean(hits, axis=0) > 0.88)
    assert np.all(np.mean(hits, axis=0) < 0.99)


def test_the_band_ends_where_a_resample_knows_nothing() -> None:
    found = best_of_k([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert found is not None
    assert [math.isnan(low) for low in found.low] == [False, False, False, True, True, True]
    assert best_of_k([]) is None


def test_only_random_trials_count_and_failures_count_as_untrained() -> None:
    trials = [
        trial(0, [1.0, 2.0], is_startup=True),
        trial(1, [1.0, None], is_startup=True),
        trial(2, [3.0], state="running", is_startup=True),
        trial(3, [0.1, 0.1]),
    ]
    assert startup_values(study(trials)) == [1.5, UNTRAINED]
    (curve,) = best_of_k_curves(file(study(trials), study(trials[3:], optimizer="sgd")))
    assert (curve.optimizer, curve.n) == ("kfac", 2)
    assert curve.expected == pytest.approx(((1.5 + UNTRAINED) / 2, 1.5))
