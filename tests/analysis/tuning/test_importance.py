import numpy as np
import pytest

from kftune.analysis.stored.results import StudyResults
from kftune.analysis.tuning.importance import hyperparameter_importances
from tests.analysis.memory import study, trial

SPACE = {
    "dimensions": {
        "lr": {"kind": "float", "low": 1e-4, "high": 1.0, "log": True},
        "weight_decay": {"kind": "float", "low": 1e-6, "high": 1e-2, "log": True},
        "batch_size": {"kind": "int", "low": 16, "high": 512, "log": True},
        "schedule": {"kind": "categorical", "choices": ["constant", "linear"]},
    },
    "fixed": {},
}


def tuned(n: int, seed: int = 0) -> StudyResults:
    """The loss is (log10(lr) + 2)² + a little of the schedule, and noise."""
    rng, trials = np.random.default_rng(seed), []
    for number in range(n):
        params = {
            "lr": float(10 ** rng.uniform(-4, 0)),
            "weight_decay": float(10 ** rng.uniform(-6, -2)),
            "batch_size": int(2 ** rng.integers(4, 10)),
            "schedule": str(rng.choice(["constant", "linear"])),
        }
        loss = (np.log10(params["lr"]) + 2) ** 2 + 0.5 * (params["schedule"] == "linear") + 0.1 * rng.normal()
        trials.append(trial(number, [float(loss)] * 2, params=params))
    return study(trials, space=SPACE)


def test_what_the_loss_depends_on_comes_first_and_the_interval_says_how_sure() -> None:
    found = hyperparameter_importances(tuned(60), n_resamples=6)
    assert found[0].sampled_name == "lr"
    by_name = {importance.sampled_name: importance for importance in found}
    assert set(by_name) == {"lr", "weight_decay", "batch_size", "schedule"}
    assert by_name["lr"].low > max(by_name[name].high for name in by_name if name != "lr")
    assert all(0 <= found.low <= found.importance <= found.high <= 1 for found in by_name.values())


def test_it_is_the_same_again() -> None:
    assert hyperparameter_importances(tuned(20), n_resamples=2) == hyperparameter_importances(tuned(20), n_resamples=2)


def test_what_is_not_known_of_all_trials_is_left_out() -> None:
    whole = tuned(20)
    trials = [
        *whole.trials,
        trial(20, [0.5, 0.5], params={"lr": 0.1, "weight_decay": 1e-3, "batch_size": 9999}),  # from an earlier box
    ]
    found = hyperparameter_importances(study(trials, space=SPACE), n_resamples=2)
    assert {importance.sampled_name for importance in found} == {"lr", "weight_decay"}


@pytest.mark.parametrize("n", [0, 1, 7])
def test_few_trials_have_no_importances(n: int) -> None:
    assert hyperparameter_importances(tuned(n)) == []


def test_equal_values_have_none_either() -> None:
    assert hyperparameter_importances(study([trial(i, [1.0, 1.0]) for i in range(20)])) == []
    assert hyperparameter_importances(study([trial(i, [1.0, float(i)]) for i in range(20)], space={})) == []
