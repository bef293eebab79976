"""A problem is what its arguments in the study file make of it: numbers of examples, accuracy or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kftune.cli import main
from kftune.errors import ConfigError, UserCodeError
from kftune.space import Int
from kftune.study.config import config_from_dict, make_plans

PROBLEM = """
import functools
from pathlib import Path
import torch
from torch import nn
from kftune.problems import Problem, ProblemEntry, Split

def load(*, device, dtype, data_dir, n=100, counts=False, size="full"):
    if n is None or n == 0:
        raise (KeyError if n is None else ValueError)("n")
    with Path(__file__).with_name("loaded.txt").open("a") as log:
        log.write(f"{n}\\n")
    x = torch.linspace(0, 1, n, device=device, dtype=dtype)[:, None]
    right = (lambda output, targets: (output.round() == targets).double().mean()) if counts else None
    return Problem(name="line", likelihood="gaussian", make_model=functools.partial(nn.Linear, 1, 1),
                   loss=nn.functional.mse_loss, train=Split(x, x), test=Split(x, x), accuracy=right)

def required(*, device, dtype, data_dir, n=None):
    return load(device=device, dtype=dtype, data_dir=data_dir, n=n)

entry = ProblemEntry(name="line", load=load, summary="", source="", n_train=100, n_test=100,
                     args={"n": 100, "counts": False, "size": "full"})
said = ProblemEntry(name="line", load=load, summary="", source="", n_train=100, n_test=100,
                    args={"n": 100, "counts": False, "size": "full"}, sized_by=("n", "counts"))
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sized.py").write_text(PROBLEM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def data(directory: Path, attribute: str, args: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "name": "sizes",
        "problems": [{"target": f"sized:{attribute}", "args": args}],
        "optimizers": [{"name": "sgd", "fixed": {"lr": 0.1}}],
        "budget": {"updates": 1},
        "trials": 1,
        "module_dir": str(directory),
    } | changes


def loaded(directory: Path) -> list[str]:
    log = directory / "loaded.txt"
    return log.read_text().split() if log.exists() else []


@pytest.mark.parametrize("attribute", ["load", "entry", "said", "required"])
@pytest.mark.parametrize("n", [1, 20, 5000])
def test_batches_are_as_large_as_the_training_set_that_is_asked_for(directory: Path, attribute: str, n: int) -> None:
    (plan,) = make_plans(config_from_dict(data(directory, attribute, {"n": n}), "sizes.yaml"))
    batch = plan.space.dimensions["batch_size"]
    assert isinstance(batch, Int)
    own = 1024  # the largest that sgd proposes of itself
    assert (plan.n_train, batch.high, batch.low) == (n, min(own, n), min(16, n))
    assert set(loaded(directory)) == {str(n)}, "nothing is loaded that was not asked for"


@pytest.mark.parametrize("attribute", ["load", "entry", "said"])
def test_a_fixed_batch_may_be_all_of_it_and_no_more(directory: Path, attribute: str) -> None:
    optimizers = [{"name": "sgd", "fixed": {"lr": 0.1, "batch_size": 5000}}]
    (plan,) = make_plans(config_from_dict(data(directory, attribute, {"n": 5000}, optimizers=optimizers), "sizes.yaml"))
    assert plan.space.fixed["batch_size"] == 5000
    with pytest.raises(ConfigError, match=r"batch_size: must be at most 4999, the training examples of"):
        config_from_dict(data(directory, attribute, {"n": 4999}, optimizers=optimizers), "sizes.yaml")


@pytest.mark.parametrize("attribute", ["load", "entry", "said"])
def test_an_accuracy_that_an_argument_brings_can_be_the_objective(directory: Path, attribute: str) -> None:
    config_from_dict(data(directory, attribute, {"counts": True}, objective="test_error"), "sizes.yaml")
    with pytest.raises(ConfigError, match=r"objective: test_error needs an accuracy, which"):
        config_from_dict(data(directory, attribute, {"n": 50}, objective="test_error"), "sizes.yaml")


def test_an_entry_that_says_what_changes_its_size_is_loaded_for_nothing_else(directory: Path) -> None:
    (plan,) = make_plans(config_from_dict(data(directory, "said", {"size": "small"}), "sizes.yaml"))
    assert (plan.n_train, loaded(directory)) == (100, [])


def test_an_argument_that_the_problem_fails_on_is_named(directory: Path) -> None:
    with pytest.raises(UserCodeError, match=r"ValueError: n\n.*'sized:load' cannot be loaded with n=0"):
        config_from_dict(data(directory, "load", {"n": 0}), "sizes.yaml")


@pytest.mark.parametrize("attribute", ["load", "entry", "required"])
def test_a_profile_may_use_all_the_examples_that_are_asked_for(
    directory: Path, attribute: str, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = f"sized:{attribute}"
    arguments = ["profile", problem, "--optimizers", "sgd", "--steps", "1", "--rounds", "2", "--device", "cpu"]
    assert main([*arguments, "--set", f"{problem}.n=300", "--batch-size", "300"]) == 0
    assert main([*arguments, "--set", f"{problem}.n=20", "--batch-size", "21"]) == 2
    assert "between 1 and the 20 training examples" in capsys.readouterr().err
