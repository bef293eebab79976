"""The paired comparison under the null hypothesis, under a planted difference, and against other implementations."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from kftune.analysis.trust.intervals import grid_step, holm, mean_interval, paired_t
from kftune.analysis.trust.paired import compare_pairs, paired_bootstrap, paired_difference
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
    assert paired_t([-0.5] * 3) == paired_bootstrap([-0.5] * 3) == (-0.5, (-0.5, -0.5), 0.0)
    # Two that happen to be equal do not show that there is none, nor do two that differ by floating point only.
    assert paired_t([-0.5, -0.5]) is paired_bootstrap([-0.5, -0.5]) is mean_interval([0.3, 0.1 + 0.2]) is None


def test_equal_differences_on_a_grid_are_as_uncertain_as_rounding() -> None:
    found = paired_t([-0.5, -0.5], step=0.1)
    assert found is not None
    error = 0.1 / np.sqrt(12) / np.sqrt(2)
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.5 / error, 1))
    assert found.interval == pytest.approx(stats.t.interval(0.95, 1, -0.5, error))
    assert paired_bootstrap([-0.5, -0.5], step=0.1) == found
    assert mean_interval([0.2, 0.2, 0.2], step=0.01) == pytest.approx(stats.t.interval(0.95, 2, 0.2, 0.01 / 6))
    # Wherever they differ, the noise is theirs.
    assert paired_t([-0.5, -0.4, -0.5], step=0.1) == paired_t([-0.5, -0.4, -0.5])


def test_a_grid_is_found_through_the_rounding_of_single_precision() -> None:
    rng = np.random.default_rng(6)
    for n in (360, 10_000):
        errors = 1 - (np.float32(1) - rng.binomial(n, 0.03, size=40).astype(np.float32) / np.float32(n))
        assert grid_step(errors.tolist()) == 1 / n
        assert grid_step(rng.normal(0.03, 0.01, size=40).tolist()) == 0
    assert grid_step([0.25, 0.75]) == 0.25
    assert grid_step([0.25, 0.25]) == grid_step([]) == 0


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_equal_test_errors_of_few_examples_are_told_apart_in_5_percent_of_comparisons(n_seeds: int) -> None:
    rng = np.random.default_rng(n_seeds)
    rejected = 0
    for one, other in rng.binomial(360, 0.03, size=(4000, 2, n_seeds)) / 360:
        test = paired_difference(dict(enumerate(one)), dict(enumerate(other)), step=1 / 360)
        assert test is not None
        rejected += test.p_value < 0.05
    assert 0.03 <= rejected / 4000 <= 0.07


def test_of_five_equal_optimizers_none_is_better_by_two_seeds_of_test_errors() -> None:
    rng = np.random.default_rng(7)
    wrong = 0
    for errors in rng.binomial(360, 0.03, size=(100, 5, 5)) / 360:
        made = file(
            *(
                study(
                    [trial(i, [v]) for i, v in enumerate(its[2:].tolist())],
                    optimizer=name,
                    confirmed={0: its[:2].tolist()},
                )
                for name, its in zip("abcde", errors, strict=True)
            )
        )
        pairs = compare_pairs(made)
        assert len(pairs) == 10
        wrong += any(pair.is_different for pair in pairs)
    assert wrong <= 7  # of 100; taken as without noise, equal differences made it 43


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
