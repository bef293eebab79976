"""What is known of trials that did not end in the ordinary way."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from kftune.study.samplers._observed import is_given, observations, pending, pruned_value, store_point, stored_point

X = {"x": FloatDistribution(0.0, 1.0)}


def trial(state: TrialState, value: float | None = None, x: float = 0.5) -> FrozenTrial:
    steps = {1: value} if value is not None and state == TrialState.PRUNED else None
    return optuna.trial.create_trial(
        state=state, value=value, params={"x": x}, distributions=X, intermediate_values=steps
    )


def study_of(*trials: FrozenTrial, direction: str = "minimize") -> optuna.Study:
    study = optuna.create_study(direction=direction)
    study.add_trials(trials)
    return study


C, P, F, R = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


def test_a_pruned_trial_is_no_better_than_the_median() -> None:
    study = study_of(trial(C, 1.0), trial(C, 2.0), trial(C, 9.0), trial(P, 0.5), trial(P, 4.0), trial(P), trial(F))
    assert [value for _, value in observations(study)] == [1.0, 2.0, 9.0, 2.0, 4.0, 9.0]
    upwards = study_of(trial(C, 1.0), trial(C, 2.0), trial(C, 9.0), trial(P, 5.0), trial(P), direction="maximize")
    assert [value for _, value in observations(upwards)] == [1.0, 2.0, 9.0, 2.0, 1.0]


def test_without_complete_trials_a_pruned_one_is_what_it_said() -> None:
    assert pruned_value(trial(P, 3.0), []) == 3.0
    assert pruned_value(trial(P), []) is None
    assert observations(study_of(trial(P), trial(F))) == []


def test_running_trials_are_pending_but_the_own_one_is_not() -> None:
    study = study_of(trial(C, 1.0), trial(R, x=0.25), trial(R, x=0.75))
    own = study.get_trials()[2]
    assert pending(study, besides=own) == [{"x": 0.25}]


def test_points_of_any_length_are_kept(tmp_path: Any) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 's.db'}")
    study = optuna.create_study(storage=storage)
    study.ask()
    point = {f"a_rather_long_name_of_a_dimension_{i}": i / 7 for i in range(120)} | {"c": None, "t": "ü" * 100}
    assert stored_point(study.get_trials()[0]) is None
    store_point(study, study.get_trials()[0], point)
    assert stored_point(study.get_trials()[0]) == point
    storage.engine.dispose()


@pytest.mark.parametrize(("given", "names", "whole"), [({"x": 0.5}, X, True), ({"y": 1}, X, False), ({}, {}, True)])
def test_given(given: dict[str, Any], names: dict[str, Any], whole: bool) -> None:
    study = optuna.create_study()
    study.ask()
    assert not is_given(study.get_trials()[0])
    study.enqueue_trial(given)
    study.ask()
    assert is_given(study.get_trials()[1])
    assert is_given(study.get_trials()[1], names) == whole
