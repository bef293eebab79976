"""The grid: its values, its size, its order."""

from __future__ import annotations

import optuna
import pytest

from kftune.errors import UsageError
from kftune.space import Categorical, Condition, Dimension, Float, Int, Space, Value
from kftune.study.samplers import grid_size, make_sampler
from kftune.study.samplers.grid import axis

SPACE = Space(
    {
        "lr": Float(low=1e-2, high=1.0, log=True),
        "schedule": Categorical(choices=("constant", "linear", "exponential")),
        "rate": Float(low=0.0, high=1.0, when=Condition("schedule", ("linear",))),
        "offset": Int(low=1, high=2, when=Condition("rate", (0.5,))),
    },
    {"weight_decay": 0.0},
)


@pytest.mark.parametrize(
    ("dimension", "values"),
    [
        (Float(low=1e-3, high=1.0, log=True), [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0]),
        (Float(low=2e-3, high=0.5, log=True), [3e-3, 1e-2, 3e-2, 0.1, 0.3]),
        (Float(low=4e-3, high=8e-3, log=True), [4e-3, 8e-3]),
        (Float(low=2e-3, high=4e-3, log=True), [2e-3, 4e-3]),
        (Float(low=0.1, high=30.0, log=True, relative_to="other"), [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
        (Float(low=0.9, high=0.999, log=True, complement=True), [1e-3, 3e-3, 1e-2, 3e-2, 0.1]),
        (Float(low=0.0, high=1.0), [0.0, 0.25, 0.5, 0.75, 1.0]),
        (Float(low=0.3, high=0.3, log=True), [0.3]),
        (Int(low=16, high=4096, log=True), [16, 64, 256, 1024, 4096]),
        (Int(low=1, high=4, log=True), [1, 2, 3, 4]),
        (Int(low=1, high=9), [1, 3, 5, 7, 9]),
        (Int(low=1, high=3), [1, 2, 3]),
        (Int(low=5, high=5), [5]),
        (Categorical(choices=("b", None, True)), ["b", None, True]),
    ],
)
def test_values_of_a_dimension(dimension: Dimension, values: list[Value]) -> None:
    found = axis(dimension, points=5)
    assert found == pytest.approx(values, rel=1e-12) if isinstance(dimension, Float) else found == values


def test_bounds_computed_in_floating_point_are_met() -> None:
    found = axis(Float(low=0.1 * 3, high=3 * 1.1, log=True), points=5)  # 0.30000000000000004, 3.3000000000000003
    assert found == [0.1 * 3, 1.0, 3.0]


def test_size_counts_what_can_be() -> None:
    # Five learning rates times (constant, exponential, linear with 4 rates, linear with rate ½ and 2 offsets).
    assert grid_size(SPACE, {}) == 5 * (1 + 1 + 4 + 2)
    assert grid_size(SPACE, {"points": 3}) == 5 * (1 + 1 + 2 + 2)
    assert grid_size(SPACE.override({}, {"schedule": "constant"}), {}) == 5
    assert grid_size(Space({}, {"lr": 0.1}), {}) == 1


def ask_all(n_trials: int, seed: int) -> list[dict[str, Value]]:
    study = optuna.create_study()
    found = []
    for number in range(n_trials):
        study.sampler = make_sampler(
            "grid", options={}, space=SPACE, seed=seed, trial_number=number, n_startup_trials=3
        )
        trial = study.ask()
        found.append(SPACE.suggest(trial))
        study.tell(trial, 1.0)
    return found


def test_every_configuration_once_then_again() -> None:
    n = grid_size(SPACE, {})
    found = ask_all(n + 2, seed=0)
    assert len({str(params) for params in found[:n]}) == n
    assert found[n:] == found[:2]
    assert found[:n] != ask_all(n, seed=1)
    # The order is mixed: the first few already differ in their learning rates.
    assert len({params["lr"] for params in found[:5]}) > 2


def test_too_large_a_grid_is_refused() -> None:
    space = Space({f"x{i}": Float(low=0.0, high=1.0) for i in range(8)})
    with pytest.raises(UsageError, match="sampler 'grid': more than 100000 configurations; fix some"):
        grid_size(space, {})
    with pytest.raises(UsageError, match="points must be a whole number"):
        grid_size(space, {"points": "many"})


def test_a_dimension_outside_the_space_is_an_error() -> None:
    sampler = make_sampler("grid", options={}, space=SPACE, seed=0, trial_number=0, n_startup_trials=0)
    study = optuna.create_study(sampler=sampler)
    with pytest.raises(ValueError, match="the grid has no dimension 'other'"):
        study.ask().suggest_float("other", 0.0, 1.0)
