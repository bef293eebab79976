"""The grid: its values, its size, its order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import optuna
import pytest

from kftune.errors import UsageError
from kftune.space import Categorical, Condition, Dimension, Float, Int, Space, Value
from kftune.study.samplers import SAMPLERS, make_sampler, planned_trials
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


def size(space: Space, options: dict[str, Any] | None = None) -> int:
    """Trials of a study that is to begin, before its grid has grown."""
    return planned_trials("grid", options=options or {}, space=space, seed=0, trials=[], most=1_000_000)


def test_size_counts_what_can_be() -> None:
    # Five learning rates times (constant, exponential, linear with 4 rates, linear with rate ½ and 2 offsets).
    assert size(SPACE) == 5 * (1 + 1 + 4 + 2)
    assert size(SPACE, {"points": 3}) == 5 * (1 + 1 + 2 + 2)
    assert size(SPACE.override({}, {"schedule": "constant"})) == 5
    assert size(Space({}, {"lr": 0.1})) == 1


def ask_all(n_trials: int, seed: int) -> list[dict[str, Value]]:
    study = optuna.create_study()
    found = []
    for number in range(n_trials):
        study.sampler = make_sampler(
            "grid", options={}, space=SPACE, seed=seed, trial_number=number, n_startup_trials=3
        )
        trial = study.ask()
        found.append(SPACE.suggest(trial))
        study.tell(trial, abs(math.log10(float(found[-1]["lr"] or 0)) + 1))
    return found


def test_every_configuration_once_then_again() -> None:
    n = size(SPACE)
    found = ask_all(n + 2, seed=0)
    assert len({str(params) for params in found[:n]}) == n
    assert found[n:] == found[:2]
    assert found[:n] != ask_all(n, seed=1)
    # The order is mixed: the first few already differ in their learning rates.
    assert len({params["lr"] for params in found[:5]}) > 2


def test_too_large_a_grid_is_refused() -> None:
    space = Space({f"x{i}": Float(low=0.0, high=1.0) for i in range(8)})
    with pytest.raises(UsageError, match="sampler 'grid': more than 100000 configurations; fix some"):
        size(space)
    with pytest.raises(UsageError, match="points must be a whole number"):
        size(space, {"points": "many"})


def test_a_dimension_outside_the_space_is_an_error() -> None:
    sampler = make_sampler("grid", options={}, space=SPACE, seed=0, trial_number=0, n_startup_trials=0)
    study = optuna.create_study(sampler=sampler)
    with pytest.raises(ValueError, match="the grid has no dimension 'other'"):
        study.ask().suggest_float("other", 0.0, 1.0)


# -- growing ---------------------------------------------------------------------------------------------------------

BOX = Space(
    {
        "lr": Float(low=1e-2, high=1e-1, log=True),
        "damping": Float(low=0.1, high=1.0, log=True, relative_to="lr"),
        "momentum": Float(low=0.7, high=0.97, log=True, complement=True),
    },
    {"batch_size": 64},
)
Loss: TypeAlias = Callable[[Mapping[str, float]], float]


def bowl(**best: float) -> Loss:
    """Least at ``best``; sampled names with a slash or a minus cannot be keywords."""
    names = {"lr": "lr", "damping": "damping/lr", "momentum": "1-momentum"}
    return lambda p: sum(math.log10(p[names[name]] / value) ** 2 for name, value in best.items())


def planned(study: optuna.Study, space: Space, options: dict[str, Any], most: int = 200) -> int:
    trials = study.get_trials(deepcopy=False)
    return planned_trials("grid", options=options, space=space, seed=0, trials=trials, most=most)


def grown(loss: Loss, *, space: Space = BOX, options: dict[str, Any] | None = None, most: int = 200) -> optuna.Study:
    """A study that runs until it has as many trials as it is to have."""
    study, options = optuna.create_study(), options or {}
    number = 0
    while number < planned(study, space, options, most):
        ask(study, loss, number, space, options)
        number += 1
    return study


def ask(
    study: optuna.Study, loss: Loss, number: int, space: Space = BOX, options: dict[str, Any] | None = None
) -> None:
    options = options or {}
    widest = SAMPLERS.get("grid").widen
    assert widest is not None
    study.sampler = make_sampler("grid", options=options, space=space, seed=0, trial_number=number, n_startup_trials=3)
    trial = study.ask()
    widest(space, {"points": 5, "extend": 2} | options).suggest(trial)
    study.tell(trial, loss(trial.params))


def test_a_best_value_inside_ends_the_grid() -> None:
    study = grown(bowl(lr=0.03, damping=0.3, momentum=0.1))
    assert len(study.trials) == size(BOX) == 27
    assert planned(optuna.create_study(), BOX, {}) == 27


def test_a_best_value_on_an_edge_goes_on_beyond_it() -> None:
    study = grown(bowl(lr=0.3, damping=0.3, momentum=0.1))
    # lr was best at 0.1: the nine configurations with 0.3 follow. There it is inside again only if 1 is worse.
    assert {trial.params["lr"] for trial in study.trials[27:36]} == {0.3}
    assert {trial.params["lr"] for trial in study.trials[36:]} == {1.0}
    assert len(study.trials) == 27 + 9 + 9
    assert study.best_params == {"lr": 0.3, "damping/lr": 0.3, "1-momentum": 0.1}
    assert len({str(trial.params) for trial in study.trials}) == len(study.trials)
    # The nearest to the best so far come first.
    assert study.trials[27].params == {"lr": 0.3, "damping/lr": 0.3, "1-momentum": 0.1}


def test_it_goes_at_most_so_far_and_only_as_far_as_it_may() -> None:
    far = bowl(lr=100.0, damping=0.3, momentum=0.1)
    assert max(trial.params["lr"] for trial in grown(far).trials) == 1.0
    assert max(trial.params["lr"] for trial in grown(far, options={"extend": 1}).trials) == 0.3
    assert len(grown(far, options={"extend": 0}).trials) == 27
    assert len(grown(far, most=30).trials) == 30
    # 1 − momentum ends at 1, where the momentum is 0.
    slow = grown(bowl(lr=0.03, damping=0.3, momentum=100.0))
    assert max(trial.params["1-momentum"] for trial in slow.trials) == 1.0
    # In a corner two axes grow at once.
    corner = grown(bowl(lr=0.3, damping=0.03, momentum=0.1), options={"extend": 1})
    assert len(corner.trials) == 4 * 4 * 3
    assert corner.best_params == {"lr": 0.3, "damping/lr": 0.03, "1-momentum": 0.1}


def test_bounds_given_from_outside_are_kept() -> None:
    widest = BOX.override({"lr": Float(low=5e-3, high=0.2, log=True)}, {})
    study = optuna.create_study()
    loss = bowl(lr=100.0, damping=0.3, momentum=0.1)
    for number in range(40):
        n = planned_trials(
            "grid", options={}, space=BOX, widest=widest, seed=0, trials=study.get_trials(deepcopy=False), most=99
        )
        if number >= n:
            break
        study.sampler = make_sampler(
            "grid", options={}, space=BOX, widest=widest, seed=0, trial_number=number, n_startup_trials=3
        )
        trial = study.ask()
        widest.suggest(trial)
        study.tell(trial, loss(trial.params))
    assert len(study.trials) == 27  # the next step, 0.3, is outside
    assert max(trial.params["lr"] for trial in study.trials) == 0.1


def test_growing_goes_on_alike_after_an_interruption(tmp_path: Path) -> None:
    """In another process's place: a database, and a trial that was cut off after its first dimension."""
    loss = bowl(lr=0.3, damping=0.03, momentum=0.1)
    expected = [trial.params for trial in grown(loss).trials]
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'grid.db'}")
    study = optuna.create_study(study_name="s", storage=storage)
    for number in range(30):
        ask(study, loss, number)
    widen = SAMPLERS.get("grid").widen
    assert widen is not None
    wide = widen(BOX, {"points": 5, "extend": 2})
    for first_part in (True, False):
        study = optuna.load_study(study_name="s", storage=storage)
        study.sampler = make_sampler("grid", options={}, space=BOX, seed=0, trial_number=30, n_startup_trials=3)
        trial = study.ask() if first_part else optuna.trial.Trial(study, study.trials[30]._trial_id)
        if first_part:
            wide.dimensions["lr"].suggest("lr", trial)
        else:
            wide.suggest(trial)
            study.tell(trial, loss(trial.params))
    for number in range(31, planned(study, BOX, {})):
        ask(study, loss, number)
    assert [trial.params for trial in study.trials] == expected[: len(study.trials)]
    storage.engine.dispose()


def test_given_trials_do_not_take_a_place_on_the_grid() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"lr": 0.05, "damping/lr": 0.5, "1-momentum": 0.2})
    loss = bowl(lr=0.03, damping=0.3, momentum=0.1)
    number = 0
    while number < planned(study, BOX, {}):
        ask(study, loss, number)
        number += 1
    assert len(study.trials) == 28
    assert len({str(trial.params) for trial in study.trials}) == 28


def test_no_configuration_twice_while_others_run() -> None:
    """Two at a time: which value is best may change while the grid grows."""
    study, running = optuna.create_study(), []
    loss = bowl(lr=0.3, damping=0.03, momentum=0.1)
    widen = SAMPLERS.get("grid").widen
    assert widen is not None
    wide = widen(BOX, {"points": 5, "extend": 2})
    for number in range(40):
        study.sampler = make_sampler("grid", options={}, space=BOX, seed=0, trial_number=number, n_startup_trials=3)
        trial = study.ask()
        wide.suggest(trial)
        running.append(trial)
        if len(running) == 3:
            done = running.pop(1)
            study.tell(done, loss(done.params))
    assert len({str(trial.params) for trial in study.trials}) == 40
