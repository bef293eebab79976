"""``kftune describe OPTIMIZER --problem NAME``: what an optimizer does to every parameter."""

import json

import pytest

from tests.cli.conftest import Command


def test_every_parameter_is_listed_with_its_shape_and_treatment(kftune: Command) -> None:
    found = json.loads(kftune("describe", "kfac", "--problem", "digits_transformer", "--json").out)
    parameters = {p["name"]: p for p in found["parameters"]}
    assert parameters["blocks.0.hidden.weight"] == {
        "name": "blocks.0.hidden.weight", "shape": [64, 32], "n": 2048, "treatment": "Kronecker-factored",
    }  # fmt: skip
    assert {p["treatment"] for name, p in parameters.items() if "norm" in name} == {"SGD, outside the KL clip"}
    assert sum(p["n"] for p in parameters.values()) == found["n_parameters"]
    assert [t["treatment"] for t in found["treatments"]] == ["Kronecker-factored", "SGD, outside the KL clip"]
    assert sum(t["share"] for t in found["treatments"]) == pytest.approx(1)
    text = kftune("describe", "kfac", "--problem", "digits_transformer").out
    assert "blocks.0.hidden.weight" in text
    assert "64×32" in text
    assert "97 %" in text


def test_hyperparameters_may_decide_it(kftune: Command) -> None:
    command = ["describe", "shampoo", "--problem", "digits_mlp", "--set", "max_dimension=50", "--json"]
    found = json.loads(kftune(*command).out)
    assert found["hyperparameters"] == {"max_dimension": 50}
    assert [t["n"] for t in found["treatments"]] == [8330, 640]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["kfac_tridiagonal", "--problem", "digits_resnet"], "kfac_tridiagonal cannot train digits_resnet"),
        (["digits_mlp", "--problem", "digits_mlp"], "unknown optimizer 'digits_mlp'"),
        (["kfac", "--set", "lr=1"], "--set: is for hyperparameters on a problem"),
        (["kfac", "--problem", "digits_mlp", "--set", "lr"], "--set: must look like key=value, got 'lr'"),
        (["kfac", "--problem", "digits_mlp", "--set", "nose=1"], "--set: kfac has no hyperparameter 'nose'"),
    ],
)
def test_what_cannot_be_told_is_refused(kftune: Command, command: list[str], why: str) -> None:
    refused = kftune("describe", *command)
    assert refused.code == 2
    assert why in refused.err
