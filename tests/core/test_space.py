"""Search spaces: what the sampler varies and what the optimizer gets."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest

from kftune.space import Categorical, Condition, Float, Int, Space, Value, from_dict

SPACE = Space(
    {
        "lr": Float(low=1e-3, high=1.0, log=True),
        "damping": Float(low=1e-2, high=10.0, log=True, relative_to="lr"),
        "factor_decay": Float(low=0.5, high=0.999, log=True, complement=True),
        "batch_size": Int(low=16, high=1024, log=True),
        "schedule": Categorical(choices=("constant", "linear")),
        "rate": Float(low=0.1, high=2.0, when=Condition("schedule", ("linear",))),
    },
    {"momentum": 0.9},
)


class Recorder:
    """Answers every question with the value it was given for that name, and keeps the questions."""

    def __init__(self, **values: Value) -> None:
        self.values = values
        self.asked: dict[str, tuple[Any, ...]] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.asked[name] = (low, high, log)
        return self.values[name]  # type: ignore[return-value]  # the test's own values

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self.asked[name] = (low, high, log)
        return self.values[name]  # type: ignore[return-value]  # the test's own values

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked[name] = tuple(choices)
        return self.values[name]


SAMPLED: dict[str, Value] = {
    "lr": 0.1,
    "damping/lr": 0.5,
    "1-factor_decay": 0.05,
    "batch_size": 64,
    "schedule": "linear",
    "rate": 1.5,
}


def test_changes_of_variable() -> None:
    recorder = Recorder(**SAMPLED)
    params = SPACE.suggest(recorder)
    assert params.pop("damping") == pytest.approx(0.05)
    assert params.pop("factor_decay") == pytest.approx(0.95)
    assert params == {"momentum": 0.9, "lr": 0.1, "batch_size": 64, "schedule": "linear", "rate": 1.5}
    assert recorder.asked["1-factor_decay"] == (0.001, 0.5, True)
    assert recorder.asked["damping/lr"] == (1e-2, 10.0, True)


def test_stored_samples_resolve_to_what_was_suggested() -> None:
    assert SPACE.resolve(SAMPLED) == SPACE.suggest(Recorder(**SAMPLED))


def test_inactive_dimensions_are_not_asked_for() -> None:
    recorder = Recorder(**(SAMPLED | {"schedule": "constant"}))
    assert "rate" not in SPACE.suggest(recorder)
    assert "rate" not in recorder.asked


def test_an_optuna_trial_answers() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        params = SPACE.suggest(trial)
        assert params == SPACE.resolve(trial.params)
        assert 0.5 <= float(params["factor_decay"] or 0) <= 0.999
        assert ("rate" in params) == (params["schedule"] == "linear")
        study.tell(trial, 0.0)


def test_plain_data_and_back() -> None:
    assert from_dict(SPACE.to_dict()) == SPACE


def test_override_replaces_and_fixes() -> None:
    space = SPACE.override({"momentum": Float(low=0.0, high=0.99)}, {"schedule": "linear", "damping": 0.3})
    assert "momentum" in space.dimensions
    assert space.fixed == {"schedule": "linear", "damping": 0.3}
    sampled = {name: SAMPLED[name] for name in ("lr", "1-factor_decay", "batch_size", "rate")} | {"momentum": 0.5}
    params = space.suggest(Recorder(**sampled))
    assert (params["damping"], params["rate"], params["momentum"]) == (0.3, 1.5, 0.5)


def test_a_dimension_relative_to_a_fixed_value() -> None:
    space = SPACE.override({}, {"lr": 2.0})
    params = space.resolve({name: value for name, value in SAMPLED.items() if name != "lr"})
    assert params["damping"] == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float(low=2.0, high=1.0), "low must not be above high, got low=2.0 and high=1.0"),
        (lambda: Int(low=2, high=1), "low must not be above high"),
        (lambda: Float(low=0.0, high=1.0, log=True), "a log scale needs low > 0, got 0.0"),
        (lambda: Float(low=0.0, high=1.0, log=True, complement=True), "a log scale needs 1 - high > 0"),
        (lambda: Int(low=0, high=1, log=True), "a log scale needs low > 0, got 0"),
        (lambda: Float(low=0.0, high=math.inf), "must be finite"),
        (lambda: Float(low=0.1, high=0.9, relative_to="lr", complement=True), "both relative_to and complement"),
        (lambda: Categorical(choices=()), "must not be empty"),
        (lambda: Categorical(choices=(1, 1)), "must differ"),
        (lambda: Space({"a": Int(low=1, high=2)}, {"a": 1}), "both a dimension and fixed"),
        (lambda: Space({"a": Float(low=1, high=2, relative_to="b")}), "'a' depends on 'b'"),
    ],
)
def test_impossible_spaces(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
