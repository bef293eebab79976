"""What a study file may write and no sampler could search: it is refused when the file is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from kftune.errors import ConfigError
from kftune.study.config import config_from_dict, make_plans
from kftune.study.samplers import SAMPLERS

NEXT = math.nextafter(0.1, 1)


def study(space: dict[str, Any], sampler: str = "random") -> dict[str, Any]:
    return {
        "name": "ranges",
        "problems": ["digits_mlp"],
        "optimizers": [{"name": "sgd", "space": space, "fixed": {"batch_size": 32}}],
        "budget": {"updates": 1},
        "trials": 1,
        "sampler": sampler,
    }


@pytest.mark.parametrize("sampler", SAMPLERS.names())
@pytest.mark.parametrize(
    ("space", "flaw"),
    [
        ({"nesterov": {"choices": [True, False, True]}}, "choices must differ"),
        ({"weight_decay": {"choices": [0, 0.0]}}, "choices must differ"),
        ({"lr": {"low": 0.1, "high": NEXT, "log": True}}, "lr.high: is too near to low for a range"),
        ({"momentum": {"low": 0.1, "high": NEXT, "log": False}}, "momentum.high: is too near to low"),
        (
            {"lr": {"low": 5e-324, "high": 1.0, "log": True}},
            "lr.low: must be 0 or at least 2.23e-308 in size, got 5e-324",
        ),
        ({"weight_decay": {"low": 0.0, "high": 5e-324}}, "weight_decay.high: must be 0 or at least 2.23e-308"),
    ],
)
def test_what_no_sampler_can_search_is_refused(space: dict[str, Any], flaw: str, sampler: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(study(space, sampler), "ranges.yaml")
    assert flaw in str(caught.value)


OWN = "def own(params, *, lr, a, b=None):\n    import torch\n    return torch.optim.SGD(params, lr=lr)\n"


@pytest.mark.parametrize(
    ("given", "flaw"),
    [
        ({"choices": [True, 1, 2]}, r"space.a.choices\[1\]: choices must differ: true and 1 are equal numbers"),
        ({"choices": [0, "x", False]}, r"space.a.choices\[2\]: choices must differ: 0 and false are equal numbers"),
        ({"choices": [1, 1.0]}, "choices must differ"),
        ({"choices": [0.0, -0.0]}, "choices must differ"),
        ({"low": -1e308, "high": 1e308}, r"space.a.high: is too far from low \(-1e\+308\) to be searched"),
        ({"low": 0, "high": 1e30, "int": True}, r"space.a.high: must be between -2\^53 and 2\^53"),
        ({"low": 1.0, "high": math.nextafter(1.0, 2)}, "space.a.high: is too near to low"),
    ],
)
def test_nor_of_an_optimizer_of_ones_own(tmp_path: Path, given: dict[str, Any], flaw: str) -> None:
    (tmp_path / "own_ranges.py").write_text(OWN)
    data = study({}) | {
        "optimizers": [{"target": "own_ranges:own", "space": {"a": given}, "fixed": {"batch_size": 32, "lr": 0.1}}],
        "module_dir": str(tmp_path),
    }
    with pytest.raises(ConfigError, match=flaw):
        config_from_dict(data, "ranges.yaml")


@pytest.mark.parametrize(
    "given",
    [
        {"low": 0.1, "high": 0.1 * (1 + 1e-8), "log": True},
        {"low": 1e-300, "high": 1.0, "log": True},
        {"low": 0.1, "high": 0.1},
        {"choices": [1, 2, 0.5]},
    ],
)
def test_narrow_wide_and_single_ones_are_taken(given: dict[str, Any]) -> None:
    (plan,) = make_plans(config_from_dict(study({"lr": given}), "ranges.yaml"))
    assert "lr" in plan.space.dimensions
