"""The JSON schema of a study file: it says of every file what kftune's own loader says, as far as a schema can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kftune.errors import ConfigError
from kftune.optim import OPTIMIZERS
from kftune.problems import PROBLEMS
from kftune.study.config import OptimizerConfig, ProblemConfig, config_from_dict, load_config
from kftune.study.config._fields import Strict
from kftune.study.config.schema import key_descriptions, study_schema
from kftune.study.samplers import SAMPLERS

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "studies").glob("**/*.yaml"))
SMALLEST = {"name": "s", "problems": ["digits_mlp"], "optimizers": ["sgd"], "budget": {"updates": 3}, "trials": 2}

GOOD: list[dict[str, Any]] = [
    {},
    {"storage": None},
    {"storage": "results.db"},
    {"storage": "postgresql+psycopg://u:p@host/db"},
    {"problems": [{"name": "digits_mlp", "label": "small"}, {"name": "digits_mlp"}]},
    {"problems": [{"name": "digits_mlp", "target": None, "args": {}}]},
    {"optimizers": ["sgd", "kfac", {"name": "kfac", "label": "my kfac", "fixed": {"damping": 0.1}}]},
    {"optimizers": [{"name": "kfac", "space": {"lr": {"low": 1e-3, "high": 1, "log": True}}}]},
    {"optimizers": [{"name": "kfac", "space": {"fisher": {"choices": ["mc", "exact"]}}}]},
    {
        "optimizers": [
            {"name": "sgd", "space": {"momentum": {"low": 0.5, "high": 0.9, "relative_to": None, "when": None}}}
        ]
    },
    {"optimizers": ["torch.optim:Adagrad"], "module_dir": "."},
    {"optimizers": [{"target": "torch.optim:Adam", "name": "adam", "fixed": {"betas": [0.9, 0.99], "batch_size": 8}}]},
    {"budget": {"seconds": 1, "tolerance": 0.5, "reruns": 0}},
    {"budget": {"seconds": 1.5}},
    {"sampler": "tpe"},
    {"sampler": {"name": "tpe"}},
    {"sampler": {"name": "gpyopt", "faithful": True}},
    {"sampler": {"faithful": True}},
    {"sampler": {"target": "optuna.samplers:RandomSampler"}},
    {"sampler": {"target": "optuna.samplers:TPESampler", "args": {"n_ei_candidates": 3}}},
    {"devices": "auto"},
    {"devices": ["cpu", "cpu"]},
    {"devices": "cuda:0, cuda:1"},
    {"threads": "auto"},
    {"threads": 2},
    {"micro_batch": "auto"},
    {"micro_batch": 64},
    {"racing": True},
    {"racing": False},
    {"racing": None},
    {"racing": {"quantile": 0.3}},
    {"pruner": "median"},
    {"pruner": {"name": "hyperband", "reduction_factor": 4, "after": 0.1}},
    {"pruner": {"name": "median", "reduction_factor": 3}},
    {"warm_start": "other"},
    {"warm_start": {"from": "old.db#mnist", "top": 3}},
    {"warm_start": ["other", {"from": "old.db#mnist"}]},
    {"limit": {"hours": 1.5}},
    {"evaluation": {"points": 4}},
    {"objective": "test_error", "seed": 4294967295, "dtype": "float64", "run_timeout": 20},
]
BAD: list[dict[str, Any]] = [
    {"trails": 3},
    {"name": "a/b"},
    {"name": 3},
    {"trials": 0},
    {"trials": 2.5},
    {"trials": True},
    {"problems": []},
    {"problems": "digits_mlp"},
    {"problems": ["digits_mpl"]},
    {"problems": [{"label": "nameless"}]},
    {"problems": [{"name": "digits_mlp", "arg": {}}]},
    {"optimizers": ["kfacc"]},
    {"optimizers": [{"name": "kfac", "fixed": {"dampin": 0.1}}]},
    {"optimizers": [{"name": "kfac", "fixed": {"damping": "high"}}]},
    {"optimizers": [{"name": "kfac", "fixed": {"fisher": "sampled"}}]},
    {"optimizers": [{"name": "kfac", "space": {"dampin": {"low": 0.1, "high": 1}}}]},
    {"optimizers": [{"name": "kfac", "space": {"damping": 0.1}}]},
    {"optimizers": [{"name": "kfac", "space": {"damping": {"choices": []}}}]},
    {"optimizers": [{"name": "kfac", "space": {"damping": {"choices": [0.1], "low": 0.1}}}]},
    {"optimizers": [{"name": "kfac", "space": {"damping": {"low": 0.1, "high": 1, "when": {}}}}]},
    {"optimizers": [{"target": "torch.optim"}]},
    {"budget": {}},
    {"budget": 10},
    {"budget": {"seconds": 0}},
    {"budget": {"seconds": 1, "updates": 2}},
    {"budget": {"updates": 2, "tolerance": 0.2}},
    {"sampler": "tpee"},
    {"sampler": {"name": "tpe", "faithful": True}},
    {"sampler": {"name": "gpyopt", "faithful": "yes"}},
    {"sampler": {"target": "optuna.samplers:RandomSampler", "seed": 1}},
    {"devices": []},
    {"devices": ["gpu"]},
    {"threads": 0},
    {"micro_batch": 0},
    {"micro_batch": "all"},
    {"racing": 0.5},
    {"racing": {"quantile": 1}},
    {"pruner": "mean"},
    {"pruner": {"name": "median", "reduction_factor": 4}},
    {"warm_start": None},
    {"warm_start": {"top": 3}},
    {"limit": {"hours": 0}},
    {"evaluation": {"points": 0}},
    {"objective": "loss"},
    {"seed": -1},
    {"seed": 4294967296},
    {"storage": "mysql://host/db"},
    {"storage": ""},
]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    schema = study_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def loads(data: dict[str, Any]) -> bool:
    try:
        config_from_dict(data, "study.yaml")
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("change", GOOD, ids=str)
def test_what_is_a_study_file_is_one_to_the_schema(
    change: dict[str, Any], validator: jsonschema.Draft7Validator
) -> None:
    data = SMALLEST | change
    validator.validate(data)
    # Targets need a search space of their own, which no schema can know.
    if ":" not in str(change.get("optimizers")):
        assert loads(data)


@pytest.mark.parametrize("change", BAD, ids=str)
def test_what_is_none_is_none_to_the_schema(change: dict[str, Any], validator: jsonschema.Draft7Validator) -> None:
    data = SMALLEST | change
    assert not loads(data)
    assert not validator.is_valid(data)


@pytest.mark.parametrize("key", ["name", "problems", "optimizers", "budget", "trials"])
def test_what_has_no_default_is_required(key: str, validator: jsonschema.Draft7Validator) -> None:
    data = {name: value for name, value in SMALLEST.items() if name != key}
    assert not loads(data)
    assert not validator.is_valid(data)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_file_and_what_is_stored_of_it_fits(path: Path, validator: jsonschema.Draft7Validator) -> None:
    validator.validate(yaml.safe_load(path.read_text()))
    validator.validate(json.loads(json.dumps(load_config(path).to_dict())))


def test_every_plug_in_can_be_named_in_both_ways(validator: jsonschema.Draft7Validator) -> None:
    for key, names in (("problems", PROBLEMS.names()), ("optimizers", OPTIMIZERS.names())):
        validator.validate(SMALLEST | {key: list(names)})
        validator.validate(SMALLEST | {key: [{"name": name} for name in names]})
    for entry in SAMPLERS:
        validator.validate(SMALLEST | {"sampler": entry.name})
        validator.validate(SMALLEST | {"sampler": {"name": entry.name, **entry.options}})


def test_every_key_and_every_hyperparameter_is_explained() -> None:
    schema = study_schema()
    parts = [model for model in Strict.__subclasses__() if not model.__name__.startswith("_")]
    for model in (*parts, ProblemConfig, OptimizerConfig):
        assert all(key_descriptions(model).values()), model
    undescribed = [path for path, value in keys_of(schema) if not value.get("description")]
    assert undescribed == []


def keys_of(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every key of every mapping that the schema describes, not those of its conditions."""
    found = []
    for name, definition in (("", schema), *schema["definitions"].items()):
        for part in (definition, *definition.get("anyOf", ())):
            found += [(f"{name}.{key}", value) for key, value in part.get("properties", {}).items()]
            for rule in part.get("allOf", ()):
                values = rule["then"]["properties"]["fixed"]["properties"]
                found += [
                    (f"{rule['if']['properties']['name']['const']}.{key}", value) for key, value in values.items()
                ]
    return found
