"""The paired comparison under the null hypothesis, under a planted difference, and against other implementations."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from kftune.analysis._intervals import holm, mean_interval, paired_t
from kftune.analysis.paired import compare_pairs, paired_bootstrap, paired_difference
from tests.analysis.memory import file, study, trial

N_COMPARISONS = 1000
Draw = Callable[[np.random.Generator, int], np.ndarray]
NOISE: dict[str, Draw] = {
    "normal": lambda rng, n: 1 + 0.1 * rng.normal(size=n),
    "log-normal": lambda rng, n: np.exp(0.5 * rng.normal(size=n)),
}


@pytest.mark.parametrize("n_seeds", [5, 10])
@pytest.mark.parametrize("noise", NOISE)
def test_equal_optimizers_are_told_apart_in_5_percent_of_comparisons(noise: str, n_seeds: int) -> None:
    rng = np.random.default_rng(n_seeds)
    rejected = covered = 0
    for _ in range(N_COMPARISONS):
        # What a seed does to both optimizers alike is large and has to drop out.
        shared = rng.normal(size=n_seeds)
        one, other = (dict(enumerate(shared + NOISE[noise](rng, n_seeds))) for _ in range(2))
        test = paired_difference(one, other)
        assert test is not None
        rejected += test.p_value < 0.05
        covered += test.interval[0] <= 0 <= test.interval[1]
        assert (test.p_value < 0.05) == (not test.interval[0] <= 0 <= test.interval[1])
    assert 0.03 <= rejected / N_COMPARISONS <= 0.07
    assert 0.93 <= covered / N_COMPARISONS <= 0.97


@pytest.mark.parametrize("n_seeds", [5, 10])
@pytest.mark.parametrize("noise", NOISE)
def test_the_interval_covers_a_true_difference_between_optimizers_of_unequal_noise(noise: str, n_seeds: int) -> None:
    rng = np.random.default_rng(100 + n_seeds)
    truth = {"normal": -0.5, "log-normal": -0.5 * np.exp(0.125)}[noise]
    covered = 0
    for _ in range(N_COMPARISONS):
        first, second = NOISE[noise](rng, n_seeds), 1.5 * NOISE[noise](rng, n_seeds)
        test = paired_difference(dict(enumerate(first)), dict(enumerate(second)))
        assert test is not None
        covered += test.interval[0] <= truth <= test.interval[1]
    assert 0.93 <= covered / N_COMPARISONS <= 0.97


def test_a_bootstrap_of_five_differences_trusts_them_too_much() -> None:
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        differences = rng.normal(size=5)
        means = differences[rng.integers(5, size=(999, 5))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        rejected += not low <= 0 <= high
    assert rejected / 200 > 0.1  # why Student's t is the default


def test_it_is_students_paired_test() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=8), rng.normal(size=8)
    test = paired_difference(dict(enumerate(one)), dict(enumerate(other)))
    expected = stats.ttest_rel(one, other)
    assert test is not None
    assert test.p_value == pytest.approx(expected.pvalue)
    assert test.interval == pytest.approx(tuple(expected.confidence_interval()))
    assert mean_interval(one.tolist()) == pytest.approx(stats.t.interval(0.95, 7, one.mean(), stats.sem(one)))


def test_the_bootstrap_agrees_with_it_where_seeds_are_many() -> None:
    differences = np.random.default_rng(4).normal(0.3, 1, size=60).tolist()
    t, bootstrap = paired_t(differences), paired_bootstrap(differences)
    assert t is not None
    assert bootstrap is not None
    assert bootstrap.interval == pytest.approx(t.interval, abs=0.03)
    assert bootstrap.p_value == pytest.approx(t.p_value, abs=0.01)
    assert paired_bootstrap(differences) == bootstrap


@pytest.mark.parametrize("differences", [[], [0.3]])
def test_one_seed_says_nothing(differences: list[float]) -> None:
    assert paired_t(differences) is None
    assert paired_bootstrap(differences) is None


def test_differences_without_noise() -> None:
    assert paired_t([0.0, 0.0, 0.0]) == (0.0, (0.0, 0.0), 1.0)
    assert paired_t([-0.5, -0.5]) == paired_bootstrap([-0.5, -0.5]) == (-0.5, (-0.5, -0.5), 0.0)


def test_holm_by_hand() -> None:
    # Sorted: 0.005·4, 0.01·3, 0.03·2, 0.04·1, none smaller than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_errs_anywhere_in_5_percent_of_families() -> None:
    rng = np.random.default_rng(1)
    wrong = sum(min(holm(rng.uniform(size=6).tolist())) < 0.05 for _ in range(4000))
    assert 0.04 <= wrong / 4000 <= 0.06


def test_a_planted_difference_is_found_and_named_first() -> None:
    rng = np.random.default_rng(5)
    shared = rng.normal(5, 1, size=5)
    losses = {
        name: shared + shift + 0.05 * rng.normal(size=5) for name, shift in {"sgd": 0.4, "kfac": 0, "adamw": 0}.items()
    }
    made = file(
        *(study([trial(0, [1, 1])], optimizer=name, confirmed={0: values.tolist()}) for name, values in losses.items())
    )
    pairs = {(pair.first, pair.second): pair for pair in compare_pairs(made)}
    assert len(pairs) == 3
    for better in ("kfac", "adamw"):
        pair = pairs[better, "sgd"]
        assert pair.is_different
        assert pair.difference == pytest.approx(-0.4, abs=0.15)
        assert pair.interval[0] < -0.4 < pair.interval[1] < 0
        assert (pair.n_seeds, pair.superiority.probability) == (5, 1.0)
        assert pair.p_holm > pair.p_value
    (same,) = (pair for pair in pairs.values() if "sgd" not in (pair.first, pair.second))
    assert not same.is_different
    assert same.difference <= 0


def test_only_common_seeds_of_one_budget_and_problem_are_paired() -> None:
    one = study([trial(0, [1, 1])], optimizer="kfac", confirmed={0: [1.0, 1.1, None, 1.3]})
    other = study([trial(0, [1, 1])], optimizer="sgd", confirmed={0: [2.0, 2.2, 2.1]})
    elsewhere = study([trial(0, [1, 1])], optimizer="sgd", problem="mnist", confirmed={0: [9.0, 9.0]})
    (pair,) = compare_pairs(file(one, other, elsewhere))
    assert (pair.first, pair.second, pair.n_seeds) == ("kfac", "sgd", 2)
    assert pair.difference == pytest.approx((1.0 - 2.0 + 1.1 - 2.2) / 2)
    assert compare_pairs(file(one, other), budget_factor=3) == []
