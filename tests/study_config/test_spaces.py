"""A study file's ``space`` and ``fixed`` on an optimizer's own space."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from torch import nn

from kftune.optim import ModelOptimizer, OptimizerEntry
from kftune.problems import PROBLEMS
from kftune.space import Categorical, Condition, Float, Int, Space
from kftune.study.config import OptimizerConfig, hyperparameters
from kftune.study.config._flaws import Flaws
from kftune.study.config._spaces import make_space

N_TRAIN = PROBLEMS.get("digits_mlp").n_train


class Curved(ModelOptimizer):
    """Takes every kind of hyperparameter, and minds its ranges."""

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        damping: float = 0.01,
        decay: float = 0.95,
        clip: float | None = None,
        every: int = 1,
        fisher: Literal["mc", "exact"] = "mc",
        samples: int = 1,
        centred: bool = False,
        likelihood: str = "gaussian",
        seed: int = 0,
    ) -> None:
        for name, value in {"lr": lr, "damping": damping}.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if decay >= 1:
            raise ValueError(f"decay must be below 1, got {decay}")
        if clip is not None and 0.4 < clip < 0.6:
            raise ValueError(f"clip must not be near 0.5, got {clip}")


OWN = Space(
    {
        "lr": Float(low=1e-3, high=1.0, log=True),
        "damping": Float(low=1e-2, high=10.0, log=True, relative_to="lr"),
        "decay": Float(low=0.5, high=0.99, log=True, complement=True),
        "fisher": Categorical(choices=("mc", "exact")),
        "samples": Int(low=1, high=8, when=Condition("fisher", ("mc",))),
        "batch_size": Int(low=16, high=100_000, log=True),
    },
    {"every": 10},
)
ENTRY = OptimizerEntry(name="curved", cls=Curved, summary="", paper="", space=OWN, second_order=True)


def resolve(space: dict[str, Any] | None = None, fixed: dict[str, Any] | None = None) -> tuple[Space, Flaws]:
    flaws = Flaws()
    config = OptimizerConfig.model_validate({"name": "curved", "space": space or {}, "fixed": fixed or {}})
    problem = PROBLEMS.get("digits_mlp")
    return make_space(config, entry=ENTRY, problem=problem, location=("optimizers", 0), flaws=flaws), flaws


def made(space: dict[str, Any] | None = None, fixed: dict[str, Any] | None = None) -> Space:
    made_space, flaws = resolve(space, fixed)
    flaws.raise_if_any()
    return made_space


def flaw_of(space: dict[str, Any] | None = None, fixed: dict[str, Any] | None = None) -> str:
    _, flaws = resolve(space, fixed)
    with pytest.raises(Exception, match="optimizers") as caught:
        flaws.raise_if_any()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("optimizers[0].")


def test_without_changes_it_is_the_own_space_with_batch_sizes_the_problem_can_fill() -> None:
    own = made()
    assert own.dimensions["batch_size"] == Int(low=16, high=N_TRAIN, log=True)
    assert {n: d for n, d in own.dimensions.items() if n != "batch_size"} == {
        n: d for n, d in OWN.dimensions.items() if n != "batch_size"
    }
    assert own.fixed == OWN.fixed


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("lr", {"low": 0.1}, Float(low=0.1, high=1.0, log=True)),
        ("lr", {"log": False}, Float(low=1e-3, high=1.0)),
        ("lr", {"low": 2, "high": 3, "log": False}, Float(low=2.0, high=3.0)),
        ("lr", {"choices": [0.1, 1]}, Categorical(choices=(0.1, 1.0))),
        ("damping", {"low": 1e-4, "high": 1}, Float(low=1e-4, high=1.0, log=True)),
        ("damping", {"low": 0.1, "relative_to": "lr"}, Float(low=0.1, high=10.0, log=True, relative_to="lr")),
        ("damping", {"log": False}, Float(low=1e-2, high=10.0, relative_to="lr")),
        ("lr", {"low": 0.1, "relative_to": None}, Float(low=0.1, high=1.0, log=True)),
        ("decay", {"high": 0.9}, Float(low=0.5, high=0.9, log=True, complement=True)),
        ("decay", {"complement": False, "log": False}, Float(low=0.5, high=0.99)),
        ("clip", {"low": 1e-3, "high": 1e-2}, Float(low=1e-3, high=1e-2)),
        ("every", {"low": 1, "high": 5}, Int(low=1, high=5)),
        ("every", {"low": 1, "high": 100, "log": True}, Int(low=1, high=100, log=True)),
        ("samples", {"high": 4}, Int(low=1, high=4, when=Condition("fisher", ("mc",)))),
        ("samples", {"high": 4, "when": None}, Int(low=1, high=4)),
        ("batch_size", {"low": 8}, Int(low=8, high=N_TRAIN, log=True)),
        ("batch_size", {"choices": [64, 128]}, Categorical(choices=(64, 128))),
        ("effective_batch_size", {"low": 64, "high": 256}, Int(low=64, high=256)),
        ("centred", {"choices": [True, False]}, Categorical(choices=(True, False))),
        (
            "clip",
            {"low": 1, "high": 2, "when": {"fisher": "exact"}},
            Float(low=1.0, high=2.0, when=Condition("fisher", ("exact",))),
        ),
    ],
)
def test_a_change_keeps_what_it_does_not_say(name: str, change: dict[str, Any], expected: Any) -> None:
    assert made({name: change}).dimensions[name] == expected


def test_fixed_takes_a_dimension_out_and_what_depends_on_it_stays() -> None:
    space = made(fixed={"lr": 1, "every": 2})
    assert "lr" not in space.dimensions
    assert space.fixed == {"lr": 1.0, "every": 2}
    assert space.dimensions["damping"] == OWN.dimensions["damping"]
    assert isinstance(space.fixed["lr"], float)


def test_searching_a_value_that_the_optimizer_fixes_frees_it() -> None:
    assert made({"every": {"low": 1, "high": 3}}).fixed == {}


@pytest.mark.parametrize(
    ("space", "fixed", "message"),
    [
        (
            {"dampin": {"low": 1, "high": 2}},
            {},
            "space.dampin: curved has no hyperparameter 'dampin'; did you mean 'damping'?",
        ),
        ({}, {"model": 1}, "fixed.model: curved has no hyperparameter 'model'"),
        ({}, {"likelihood": "gaussian"}, "fixed.likelihood: curved has no hyperparameter 'likelihood'"),
        ({"lr": {"low": 2}}, {}, "space.lr.low: must not be above high (1), got 2"),
        ({"lr": {"low": 0}}, {}, "space.lr.low: must be above 0 on a log scale, got 0"),
        ({"lr": {"low": -1, "high": 1}}, {}, "space.lr.low: must be above 0 on a log scale, got -1"),
        ({"decay": {"high": 1}}, {}, "space.decay.high: must be below 1 for a log scale of 1 - decay, got 1"),
        (
            {"damping": {"low": 1}},
            {},
            "space.damping.high: is missing (the own range is of damping/lr; relative_to: lr would",
        ),
        ({"clip": {"high": 1}}, {}, "space.clip.low: is missing"),
        ({"clip": {"low": 0.1, "high": 0.9}}, {}, "space.clip: clip must not be near 0.5, got 0."),
        ({"lr": {"low": 0.1, "high": 1, "relative_to": "clip"}}, {}, "space: 'lr' depends on 'clip', which is neither"),
        ({"every": {"low": 1, "high": 2.5}}, {}, "space.every.high: must be a whole number, got 2.5"),
        ({"every": {"low": 0, "high": 2, "log": True}}, {}, "space.every.low: must be above 0 on a log scale, got 0"),
        ({"every": {"low": 1, "high": 2, "int": False}}, {}, "space.every.int: every is a whole number, int cannot be"),
        ({"every": {"low": 1, "high": 2, "relative_to": "lr"}}, {}, "space.every.relative_to: is for real numbers"),
        ({"lr": {"relative_to": "fisher"}}, {}, "space.lr.relative_to: fisher is 'mc' or 'exact', not a number"),
        (
            {"lr": {"relative_to": "damp"}},
            {},
            "space.lr.relative_to: curved has no hyperparameter 'damp'; did you mean",
        ),
        (
            {"lr": {"low": 1, "high": 2, "relative_to": "damping"}},
            {},
            "space: 'lr' depends on 'damping', which is neither",
        ),
        ({"fisher": {"low": 1, "high": 2}}, {}, "space.fisher: fisher is 'mc' or 'exact': give choices, not a range"),
        (
            {"fisher": {"choices": ["mc", "exat"]}},
            {},
            "space.fisher.choices[1]: must be 'mc' or 'exact', got 'exat'; did you",
        ),
        ({"lr": {"choices": [0.1, 0.1]}}, {}, "space.lr: choices must differ from each other, got [0.1, 0.1]"),
        (
            {"batch_size": {"high": 5000}},
            {},
            f"space.batch_size.high: must be at most {N_TRAIN}, the training examples of",
        ),
        ({"batch_size": {"low": 0, "log": False}}, {}, "space.batch_size.low: must be at least 1, got 0"),
        ({"batch_size": {"choices": [64, 5000]}}, {}, f"space.batch_size.choices[1]: must be at most {N_TRAIN}"),
        ({}, {"batch_size": 5000}, f"fixed.batch_size: must be at most {N_TRAIN}, the training examples of digits_mlp"),
        ({}, {"effective_batch_size": 5000}, f"fixed.effective_batch_size: must be at most {N_TRAIN}"),
        ({}, {"batch_size": 2.5}, "fixed.batch_size: must be a whole number, got 2.5"),
        ({"lr": {"low": 0.1}}, {"lr": 0.1}, "fixed.lr: stands in space too; a value is either searched or fixed"),
        ({}, {"lr": "fast"}, "fixed.lr: must be a number, got 'fast'"),
        ({}, {"lr": True}, "fixed.lr: must be a number, got true"),
        ({}, {"lr": None}, "fixed.lr: must be a number, got null"),
        ({}, {"lr": float("inf")}, "fixed.lr: must be a number, got inf"),
        ({}, {"clip": "x"}, "fixed.clip: must be a number or null, got 'x'"),
        ({}, {"fisher": "exat"}, "fixed.fisher: must be 'mc' or 'exact', got 'exat'; did you mean 'exact'?"),
        ({}, {"centred": 1}, "fixed.centred: must be true or false, got 1"),
        ({}, {"every": 1.5}, "fixed.every: must be a whole number, got 1.5"),
        ({}, {"lr": -1}, "fixed.lr: lr must be above 0, got -1.0"),
        ({"lr": {"low": -1, "log": False}}, {}, "space.lr: lr must be above 0, got -1.0"),
        ({"decay": {"low": 0.5, "high": 1.5, "log": False}}, {}, "space.decay: decay must be below 1, got 1.5"),
        (
            {"samples": {"high": 4}},
            {"fisher": "exact"},
            "space.samples: has no effect: it is used only where fisher is 'mc', ",
        ),
        (
            {"samples": {"high": 4}, "fisher": {"choices": ["exact"]}},
            {},
            "space.samples: has no effect: it is used only where fisher is 'mc', and fisher is 'exact' here",
        ),
        (
            {"lr": {"low": 1, "high": 2, "when": {"fisher": "x"}}},
            {},
            "space.lr.when.fisher[0]: must be 'mc' or 'exact', got",
        ),
    ],
)
def test_a_flaw_is_told_at_its_key(space: dict[str, Any], fixed: dict[str, Any], message: str) -> None:
    assert flaw_of(space, fixed).startswith(message)


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        (
            0.1,
            "must be a range such as {low: 0.001, high: 0.1, log: true} or {choices: [1, 2]}, got 0.1 (one value belon",
        ),
        ({"choices": [1], "low": 1}, "choices cannot be combined with low"),
        ({"when": {"a": 1, "b": 2}}, "when takes one dimension and its values"),
    ],
)
def test_a_dimension_that_makes_no_sense_is_refused(dimension: Any, message: str) -> None:
    with pytest.raises(ValueError, match="1 validation error") as caught:
        OptimizerConfig.model_validate({"name": "curved", "space": {"lr": dimension}})
    assert message in str(caught.value)


def test_clipping_reaches_fixed_values_and_choices_of_the_own_space() -> None:
    own = Space({"batch_size": Categorical(choices=(64, 50_000))}, {"effective_batch_size": 50_000})
    entry = OptimizerEntry(name="curved", cls=Curved, summary="", paper="", space=own, second_order=True)
    flaws = Flaws()
    config = OptimizerConfig.model_validate({"name": "curved"})
    problem = PROBLEMS.get("digits_mlp")
    space = make_space(config, entry=entry, problem=problem, location=(), flaws=flaws)
    flaws.raise_if_any()
    assert space == Space({"batch_size": Categorical(choices=(64,))}, {"effective_batch_size": N_TRAIN})


def test_hyperparameters_are_the_constructors_and_the_training_loops() -> None:
    names = [
        "lr",
        "damping",
        "decay",
        "clip",
        "every",
        "fisher",
        "samples",
        "centred",
        "batch_size",
        "effective_batch_size",
        "accumulation",
        "full_batch_at",
        "schedule",
        "warmup",
        "final_lr",
        "decay_share",
        "milestones",
        "step_factor",
        "schedule_by",
        "damping_schedule",
        "final_damping",
    ]
    found = hyperparameters(ENTRY)
    assert list(found) == names
    assert found["lr"].default == 0.1
    assert found["fisher"].choices == ("mc", "exact")
    assert found["every"].is_whole
    assert not found["clip"].is_whole
