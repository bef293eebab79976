"""Confirmed losses: apart from the search's, without its luck, and of the right trial."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from kftune.analysis.trust.confirmed import confirmed_results
from kftune.analysis.trust.intervals import mean_interval
from kftune.results import Outcome
from tests.analysis.memory import UNTRAINED, file, run, study, trial


def test_under_pure_noise_the_tuned_loss_is_biased_and_the_confirmed_is_not() -> None:
    """24 configurations, all equally good: the best of the search looks better than any is; confirmed, it does not."""
    rng = np.random.default_rng(0)
    truth, noise = 5.0, 0.1
    tuned, confirmed, covered = [], [], []
    for _ in range(250):
        searched = rng.normal(truth, noise, size=(24, 2))
        best = np.argsort(searched.mean(axis=1))[:4]
        fresh = {int(number): rng.normal(truth, noise, size=5).tolist() for number in best}
        trials = [trial(number, losses.tolist()) for number, losses in enumerate(searched)]
        (result,) = confirmed_results(file(study(trials, confirmed=fresh)))
        assert result.tuned is not None
        assert result.interval is not None
        tuned.append((result.tuned - truth) / noise)
        confirmed.append((result.mean - truth) / noise)
        covered.append(result.interval[0] <= truth <= result.interval[1])
    error = 1 / math.sqrt(5 * 250)  # of the mean of 250 means of 5
    assert np.mean(tuned) < -1
    assert abs(np.mean(confirmed)) < 0.02 + 3 * error
    assert 0.91 <= np.mean(covered) <= 0.98


def test_a_runner_up_that_is_clearly_better_on_fresh_seeds_takes_the_place() -> None:
    trials = [trial(0, [1.0, 1.0]), trial(1, [1.1, 1.1]), trial(2, [1.2, 1.2])]
    lucky = {0: [1.50, 1.52, 1.49, 1.51], 1: [1.10, 1.12, 1.08, 1.11], 2: [1.48, 1.55, 1.47, 1.50]}
    (result,) = confirmed_results(file(study(trials, confirmed=lucky)))
    assert (result.trial, result.tuned) == (1, 1.1)
    assert result.mean == pytest.approx(1.1025)
    # The same means within the noise: the search's choice stands, though trial 1 has the lowest mean.
    noisy = {0: [1.5, 1.1, 1.3, 1.4], 1: [1.2, 1.4, 1.2, 1.3], 2: [1.6, 1.2, 1.5, 1.5]}
    (result,) = confirmed_results(file(study(trials, confirmed=noisy)))
    assert result.trial == 0


def test_failed_runs_count_as_untrained_and_crashed_ones_not_at_all() -> None:
    failed = run(0.5, trial=0, repeat=2, purpose="confirm", outcome=Outcome.DIVERGED, study="demo/digits/kfac")
    without_curve = run(
        None, trial=0, repeat=3, purpose="confirm", outcome=Outcome.OUT_OF_MEMORY, study="demo/digits/kfac"
    )
    made = study([trial(0, [1, 1])], confirmed={0: [1.0, None]}, confirmations=(failed, without_curve))
    (result,) = confirmed_results(file(made))
    assert result.values == (1.0, None, UNTRAINED, UNTRAINED)
    assert result.mean == pytest.approx((1 + 2 * UNTRAINED) / 3)
    assert result.outcomes == {"completed": 1, "crashed": 1, "diverged": 1, "out_of_memory": 1}
    assert result.by_repeat() == {0: 1.0, 2: UNTRAINED, 3: UNTRAINED}
    # 2 s each of the first and the one that diverged, 0 s of the one out of memory; the crashed one is not counted.
    assert (result.train_seconds, result.updates) == (pytest.approx(4 / 3), pytest.approx(40 / 3))


def test_budgets_are_kept_apart_and_the_search_is_not_mixed_in() -> None:
    longer = [
        run(0.5 + r, trial=0, repeat=r, purpose="confirm", budget_factor=3.0, study="demo/digits/kfac") for r in (0, 1)
    ]
    made = study([trial(0, [9.0, 9.0])], confirmed={0: [1.0, 2.0, 3.0]}, confirmations=tuple(longer))
    once, thrice = confirmed_results(file(made))
    assert (once.budget_factor, once.mean, once.tuned) == (1.0, 2.0, 9.0)
    assert (thrice.budget_factor, thrice.mean) == (3.0, 1.0)
    assert once.seeds == (900, 901, 902)


def test_unfinished_confirmations() -> None:
    assert confirmed_results(file(study([trial(0, [1, 1])]))) == []
    (one,) = confirmed_results(file(study([trial(0, [1, 1])], confirmed={0: [1.5]})))
    assert (one.mean, one.interval) == (1.5, None)
    (none,) = confirmed_results(file(study([trial(0, [1, 1])], confirmed={0: [None]})))
    assert math.isnan(none.mean)
    assert none.interval is None


@pytest.mark.parametrize("seeds", [[0.1, 0.6], [0.1, 0.9, 0.2], [0.0, 0.3]])
def test_an_interval_has_no_loss_that_there_cannot_be(seeds: list[float]) -> None:
    """Cut off, and otherwise Student's, by SciPy."""
    (result,) = confirmed_results(file(study([trial(0, [0.5, 0.5])], confirmed={0: seeds})))
    t = stats.t.interval(0.95, len(seeds) - 1, np.mean(seeds), stats.sem(seeds))
    assert t[0] < 0
    assert result.interval == (0.0, pytest.approx(t[1]))
    confirmations = tuple(
        replace(
            made, result=replace(made.result, curve=tuple(replace(p, accuracy=1 - error) for p in made.result.curve))
        )
        for r, error in enumerate(seeds)
        for made in [run(1.0, repeat=r, purpose="confirm", study="demo/digits/kfac")]
    )
    errors = study([trial(0, [0.5, 0.5])], confirmations=confirmations, config={"objective": "test_error"})
    (error,) = confirmed_results(file(errors))
    assert error.interval == (0.0, pytest.approx(min(1.0, t[1])))


def test_a_loss_that_may_be_negative_keeps_its_interval() -> None:
    seeds = [0.1, 0.6]
    t = stats.t.interval(0.95, 1, np.mean(seeds), stats.sem(seeds))
    (result,) = confirmed_results(file(study([trial(0, [0.5, 0.5]), trial(1, [-0.1, 0.9])], confirmed={0: seeds})))
    assert result.interval == pytest.approx(t)


def test_cutting_off_does_not_change_how_often_the_truth_is_covered() -> None:
    rng = np.random.default_rng(0)
    truth = math.exp(0.5)  # the mean of a log-normal with σ = 1
    for seeds in rng.lognormal(0, 1, size=(300, 3)):
        plain, cut = mean_interval(seeds.tolist()), mean_interval(seeds.tolist(), possible=(0.0, math.inf))
        assert plain is not None
        assert cut is not None
        assert (plain[0] <= truth <= plain[1]) == (cut[0] <= truth <= cut[1])
        assert cut[0] >= 0
