import math

import numpy as np
import pytest

from kftune.analysis.stored.results import TrialResults
from kftune.analysis.stored.steps import mean_steps, run_steps
from kftune.analysis.tuning.budget import budget_places, over_budget, tuned_for
from kftune.results import Outcome
from tests.analysis.memory import UNTRAINED, file, run, study, trial


def drawn(number: int, *curves: list[tuple[float, float]], **other: object) -> TrialResults:
    """A trial whose runs go through (seconds, loss)."""
    runs = [run(None, trial=number, repeat=r, curve=c, outcome=Outcome.COMPLETED) for r, c in enumerate(curves)]
    return trial(number, [curve[-1][1] for curve in curves], runs=runs)


def test_the_last_evaluation_at_or_before_t_counts() -> None:
    steps = run_steps(run(None, curve=[(1, 4), (2, 3)], outcome=Outcome.COMPLETED).result, "test_loss")
    assert steps is not None
    assert steps(np.array([0, 0.99, 1, 1.5, 2, 9])).tolist() == [UNTRAINED, UNTRAINED, 4, 4, 3, 3]


def test_no_loss_counts_as_worse_than_the_untrained_model() -> None:
    steps = run_steps(run(None, curve=[(1, 50), (2, math.nan)], outcome=Outcome.COMPLETED).result, "test_loss")
    assert steps is not None
    assert steps(np.array([1.0, 2.0])).tolist() == [UNTRAINED, UNTRAINED]


def test_a_run_that_failed_is_worth_its_losses_until_then() -> None:
    steps = run_steps(run(None, curve=[(1, 4), (1.5, 1e9)], outcome=Outcome.DIVERGED).result, "test_loss")
    assert steps is not None
    assert steps(np.array([1.2, 1.5, 9.0])).tolist() == [4, UNTRAINED, UNTRAINED]
    crashed = run(None, curve=[(1, 4)], outcome=Outcome.CRASHED)
    assert run_steps(crashed.result, "test_loss") is None


def test_means_are_taken_where_all_have_begun() -> None:
    one = run_steps(run(None, curve=[(1, 4), (2, 3)], outcome=Outcome.COMPLETED).result, "test_loss")
    other = run_steps(run(None, curve=[(1.5, 2)], outcome=Outcome.COMPLETED).result, "test_loss")
    assert one is not None
    assert other is not None
    mean = mean_steps([one, other])
    assert mean.at.tolist() == [0, 1, 1.5, 2]
    assert mean.values.tolist() == [UNTRAINED, (4 + UNTRAINED) / 2, 3, 2.5]


def test_the_best_configuration_and_the_ranking_change_with_the_budget() -> None:
    fast = drawn(0, [(0.5, 2.0), (2, 1.9)], [(0.5, 2.2), (2, 2.1)])
    slow = drawn(1, [(0.5, 8.0), (2, 1.0)], [(0.5, 8.0), (2, 1.2)])
    kfac, sgd = study([fast, slow]), study([drawn(0, [(0.5, 5), (2, 0.5)])], optimizer="sgd")
    found = over_budget(kfac, (0.0, 0.5, 1.0, 2.0))
    assert found.best == (0, 0, 0, 1)
    assert found.best_losses == pytest.approx((UNTRAINED, 2.1, 2.1, 1.1))
    assert found.losses.shape == (4, 2)
    assert found.losses[1].tolist() == pytest.approx([2.1, 8.0])
    assert over_budget(sgd, (0.5, 2.0)).best == (0, 0)
    assert over_budget(sgd, (0.5, 2.0)).best_losses == (5.0, 0.5)


def test_at_the_budget_it_is_what_the_search_saw_although_runs_overshoot() -> None:
    late = drawn(0, [(1, 3), (2.03, 1.0)])
    found = over_budget(study([late]), (1.9, 2.0))
    assert found.best_losses == (3.0, 1.0)


def test_failed_and_pruned_trials_are_shown_but_not_best() -> None:
    pruned = trial(0, [0.1], state="pruned", value=0.1, runs=[run(0.1, outcome=Outcome.PRUNED)])
    diverged = trial(1, [UNTRAINED], runs=[run(0.1, trial=1, outcome=Outcome.DIVERGED)])
    crashed = trial(2, [None])
    good = trial(3, [5.0])
    found = over_budget(study([pruned, diverged, crashed, good]), (2.0,))
    assert found.trials == (0, 1, 3)
    assert found.best == (3,)


def test_nothing_usable() -> None:
    empty = over_budget(study([]), (0.0, 1.0))
    assert empty.best == (None, None)
    assert all(math.isnan(loss) for loss in empty.best_losses)
    assert over_budget(study([trial(0, [None])]), (1.0,)).best == (None,)


def test_places_go_from_zero_to_the_budget_that_was_tuned_for() -> None:
    made = file(study([trial(0, [1.0])]))
    assert (tuned_for(made), tuned_for(made, across="update")) == (2.0, None)
    assert budget_places(made, n=5) == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert budget_places(made, across="update", n=3) == (0.0, 10.0, 20.0)
