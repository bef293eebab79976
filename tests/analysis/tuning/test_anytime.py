import math

import pytest

from kftune.analysis.tuning.anytime import best_so_far, best_so_far_curves
from kftune.results import Outcome
from tests.analysis.memory import UNTRAINED, file, run, study, trial


def test_the_best_so_far_against_trials_and_all_seconds() -> None:
    trials = [
        trial(0, [UNTRAINED] * 2, is_startup=True, runs=[run(1.0, repeat=r, outcome=Outcome.DIVERGED) for r in (0, 1)]),
        trial(1, [3.0, 3.0], is_startup=True),
        trial(2, [5.0, 5.0]),
        trial(3, [0.1], state="pruned", runs=[run(0.1, trial=3, outcome=Outcome.PRUNED)]),
        trial(4, [2.0, 2.0]),
        trial(5, [1.0], state="running"),
    ]
    again = run(9.0, trial=1, superseded=True, wall_seconds=0.7)
    confirming = run(9.0, trial=1, superseded=True, purpose="confirm", wall_seconds=50.0)
    curve = best_so_far(study(trials, superseded=(again, confirming)))
    assert curve.trials == (1, 2, 3, 4, 5)
    assert math.isnan(curve.best[0])
    assert curve.best[1:] == (3.0, 3.0, 3.0, 2.0)
    assert curve.is_startup == (True, True, False, False, False)
    # Every run of the builder takes 0.8 s of wall time.
    assert curve.spent_seconds == pytest.approx((1.6, 3.9, 5.5, 6.3, 7.9))


def test_one_per_study_also_without_trials() -> None:
    kfac, sgd = best_so_far_curves(file(study([trial(0, [1.0])]), study([], optimizer="sgd")))
    assert (kfac.best, sgd.best, sgd.trials) == ((1.0,), (), ())
