"""What a study file may say, and how it is told what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from kftune.errors import ConfigError
from kftune.study.config import config_from_dict, make_plans, resolve_devices

GOOD: dict[str, Any] = {
    "name": "small",
    "problems": ["digits_mlp"],
    "optimizers": ["sgd", "kfac"],
    "budget": {"seconds": 1.0},
    "trials": 3,
}


def errors_of(*overrides: str, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_dict({**GOOD, **keys}, "study.yaml", overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"trails": 3}, "trails: unknown key 'trails'; did you mean 'trials'? (available: budget, devices,"),
        (
            {"budget": {"second": 1}},
            "budget.second: unknown key 'second'; did you mean 'seconds'? (available: reruns, sec",
        ),
        ({"evaluation": {"point": 1}}, "evaluation.point: unknown key 'point'; did you mean 'points'?"),
        ({"problems": [{"name": "digits_mlp", "arg": {}}]}, "problems[0].arg: unknown key 'arg'; did you mean 'args'?"),
        ({"optimizers": [{"name": "sgd", "fix": {}}]}, "optimizers[0].fix: unknown key 'fix'; did you mean 'fixed'?"),
        (
            {"optimizers": [{"name": "sgd", "space": {"lr": {"hi": 1}}}]},
            "optimizers[0].space.lr.hi: unknown key 'hi'; did you mean 'high'? (available: choices, complement, high, ",
        ),
        ({"problems": ["digit_mlp"]}, "problems[0].name: unknown problem 'digit_mlp'; did you mean 'digits_mlp'?"),
        (
            {"optimizers": ["kfc"]},
            "optimizers[0].name: unknown optimizer 'kfc'; did you mean 'kfac'? (available: adamw",
        ),
        ({"sampler": "gpopt"}, "sampler: unknown sampler 'gpopt'; did you mean 'gpyopt'? (available: cmaes, gpyopt,"),
        ({"sampler": {"name": "random", "x": 1}}, "sampler.x: sampler 'random' has no option 'x'"),
        ({"objective": "tst_loss"}, "objective: unknown objective 'tst_loss'; did you mean 'test_loss'? (available: "),
        ({"objective": 1}, "objective: must be one of test_loss, train_loss, test_error, got 1"),
        ({"dtype": "float16"}, "dtype: unknown dtype 'float16'; did you mean 'float64'? (available: float32, float64)"),
        ({"trials": 0}, "trials: must be at least 1, got 0"),
        ({"trials": -2}, "trials: must be at least 1, got -2"),
        ({"trials": 1.5}, "trials: must be a whole number, got 1.5"),
        ({"trials": True}, "trials: must be a whole number, got true"),
        ({"trials": "many"}, "trials: must be a whole number, got 'many'"),
        ({"trials": None}, "trials: must be a whole number, got null"),
        ({"trials": [1]}, "trials: must be a whole number, got a list"),
        ({"repeats": 0}, "repeats: must be at least 1, got 0"),
        ({"startup_trials": 0}, "startup_trials: must be at least 1, got 0"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"seed": 2**32}, "seed: must be below 4.29497e+09, got 4294967296"),
        ({"evaluation": {"points": 0}}, "evaluation.points: must be at least 1, got 0"),
        ({"run_timeout": 0}, "run_timeout: must be above 0, got 0"),
        ({"budget": {"seconds": 0}}, "budget.seconds: must be above 0, got 0"),
        ({"budget": {"seconds": -1.5}}, "budget.seconds: must be above 0, got -1.5"),
        ({"budget": {"seconds": float("inf")}}, "budget.seconds: must be a finite number, got inf"),
        ({"budget": {"seconds": float("nan")}}, "budget.seconds: must be a finite number, got nan"),
        ({"budget": {"updates": 0}}, "budget.updates: must be at least 1, got 0"),
        ({"budget": {"updates": 2.5}}, "budget.updates: must be a whole number, got 2.5"),
        ({"budget": 3}, "budget: must be a mapping (key: value), got 3"),
        ({"budget": {}}, "budget: give either seconds or updates, got neither"),
        (
            {"budget": {"seconds": 1, "updates": 2}},
            "budget: give either seconds or updates, got both budget.seconds and budget.updates",
        ),
        ({"problems": []}, "problems: must not be empty"),
        ({"problems": "digits_mlp"}, "problems: must be a list, got 'digits_mlp'"),
        ({"optimizers": [3]}, "optimizers[0]: must be an optimizer's name or a mapping with its name, got 3"),
        ({"optimizers": [{"label": "x"}]}, "optimizers[0].name: is missing"),
        ({"optimizers": ["sgd", "sgd"]}, "optimizers[1]: 'sgd' stands twice; give one of them a label of its own"),
        ({"problems": ["digits_mlp"] * 2}, "problems[1]: 'digits_mlp' stands twice"),
        ({"name": 3}, "name: must be text, got 3 (put it in quotes)"),
        ({"name": "a/b"}, "name: must begin with a letter or digit and hold only letters, digits, spaces and . _ - "),
        ({"name": ".."}, "name: must begin with a letter or digit"),
        ({"name": ""}, "name: must begin with a letter or digit"),
        ({"name": "x" * 101}, "name: must begin with a letter or digit"),
        ({"name": "a\nb"}, "name: must begin with a letter or digit"),
        ({"optimizers": [{"name": "sgd", "label": "a/b"}]}, "optimizers[0].label: must begin with a letter or digit"),
        ({"devices": "gpu"}, "devices: unknown device 'gpu'; did you mean 'cpu'? (available: auto, cpu, cuda, cuda:0)"),
        ({"devices": ["cpu", 3]}, "devices: unknown device 3"),
        ({"devices": []}, "devices: must be auto or a list of devices such as cpu or cuda:0, got a list"),
        ({"threads": 0}, "threads: must be a whole number of at least 1, or auto, got 0"),
        ({"threads": "two"}, "threads: must be a whole number of at least 1, or auto, got 'two'"),
        ({"storage": "mysql://x/y"}, "storage: must be a sqlite:/// or postgresql:// URL or a file name, got 'mysql"),
        ({"storage": "sqlite://"}, "storage: must name a file, so that the study outlives the process"),
        (
            {"problems": [{"name": "digits_mlp", "args": {"bais": 1}}]},
            "problems[0].args.bais: problem 'digits_mlp' has no argument 'bais'; did y",
        ),
        (
            {"problems": [{"name": "digits_mlp", "args": {"bias": 3}}]},
            "problems[0].args.bias: must be true or false, got 3",
        ),
        ({"sampler": {"name": "grid", "points": 1}}, "sampler.points: sampler 'grid': points must be a whole number i"),
        (
            {"pruner": {"name": "median", "reduction_factor": 4}},
            "pruner: reduction_factor is for successive_halving and hyperband; median has none",
        ),
        (
            {"pruner": "hyperband", "evaluation": {"points": 1}},
            "pruner: could stop no run: none is measured after 0.2 of its budget and before its end (ev",
        ),
        ({"problems": ["digits_autoencoder"], "objective": "test_error"}, "objective: test_error needs an accuracy"),
    ],
)
def test_a_flaw_is_one_line_with_file_key_value_and_what_is_allowed(keys: dict[str, Any], message: str) -> None:
    errors = errors_of(**keys)
    assert len(errors) == 1
    assert errors[0].startswith(f"study.yaml: {message}")


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict({}, "study.yaml")
    named = [line.split(": ")[1:] for line in str(caught.value).splitlines()]
    assert named == [[key, "is missing"] for key in ("name", "problems", "optimizers", "budget", "trials")]


def test_studies_come_problem_by_problem_under_their_labels() -> None:
    config = config_from_dict(
        {
            **GOOD,
            "problems": [
                "digits_autoencoder",
                {"name": "digits_autoencoder", "label": "no bias", "args": {"bias": False}},
            ],
            "optimizers": ["sgd", {"name": "kfac", "label": "kfac exact", "fixed": {"fisher": "exact"}}],
        },
        "study.yaml",
    )
    plans = make_plans(config)
    assert [plan.study for plan in plans] == [
        "small/digits_autoencoder/sgd",
        "small/digits_autoencoder/kfac exact",
        "small/no bias/sgd",
        "small/no bias/kfac exact",
    ]
    assert [dict(plan.problem_args) for plan in plans] == [{}, {}, {"bias": False}, {"bias": False}]
    assert plans[3].optimizer_name == "kfac"
    assert plans[3].space.fixed["fisher"] == "exact"


IDENTITY: list[tuple[dict[str, Any], bool]] = [
    ({"trials": 50}, False),
    ({"storage": "elsewhere.db"}, False),
    ({"devices": "cpu,cpu"}, False),
    ({"run_timeout": 30}, False),
    ({"name": "other"}, False),
    ({"problems": [{"name": "digits_mlp", "args": {"bias": True}}]}, False),  # its default, said aloud
    ({"budget": {"seconds": 1}}, False),
    ({"budget": {"seconds": 2.0}}, True),
    ({"budget": {"updates": 1}}, True),
    ({"repeats": 3}, True),
    ({"startup_trials": 9}, True),
    ({"objective": "train_loss"}, True),
    ({"seed": 1}, True),
    ({"sampler": "random"}, True),
    ({"threads": 2}, True),
    ({"dtype": "float64"}, True),
    ({"evaluation": {"points": 21}}, True),
    ({"problems": [{"name": "digits_mlp", "args": {"bias": False}}]}, True),
    ({"problems": [{"name": "digits_autoencoder", "label": "digits_mlp"}]}, True),
    ({"optimizers": [{"name": "adamw", "label": "sgd"}]}, True),
    ({"optimizers": [{"name": "sgd", "space": {"lr": {"low": 0.01}}}]}, True),
    ({"optimizers": [{"name": "sgd", "fixed": {"momentum": 0.9}}]}, True),
]


@pytest.mark.parametrize(("change", "matters"), IDENTITY)
def test_the_identity_holds_what_would_mix_unlike_results(change: dict[str, Any], matters: bool) -> None:
    before = make_plans(config_from_dict(GOOD, "a"))[0].identity()
    after = make_plans(config_from_dict({**GOOD, **change}, "b"))[0].identity()
    assert (before != after) == matters


def test_counts_stay_whole_numbers_in_the_identity() -> None:
    identity = make_plans(config_from_dict({**GOOD, "budget": {"updates": 5}}, "a"))[0].identity()
    assert repr(identity["budget"]) == "{'updates': 5}"
    assert repr(identity["repeats"]) == "2"


def test_devices_are_resolved_against_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_from_dict(GOOD, "study.yaml")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_devices(config) == ["cuda:0", "cuda:1"]
    assert resolve_devices(config, "cuda") == ["cuda:0", "cuda:1"]
    assert resolve_devices(config, "cuda:1, cpu,cpu") == ["cuda:1", "cpu", "cpu"]
    with pytest.raises(ConfigError, match=r"--devices: there is no device 'cuda:2' .*available: cpu, cuda:0, cuda:1"):
        resolve_devices(config, "cuda:2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert resolve_devices(config) == ["cpu"]
    with pytest.raises(ConfigError, match="devices: there is no device 'cuda'"):
        resolve_devices(config_from_dict({**GOOD, "devices": "cuda"}, "study.yaml"))
    with pytest.raises(ConfigError, match="--devices: unknown device 'tpu'"):
        resolve_devices(config, "tpu")
