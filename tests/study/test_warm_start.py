"""Configurations of earlier studies, placed in the search space of another, from real databases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from kftune.errors import StorageError
from kftune.space import Categorical, Condition, Float, Int, Space, Value
from kftune.storage.importing.csv_sweep import read_csv_sweep
from kftune.storage.importing.studies import store_imported
from kftune.storage.repository import Repository, TrialRecord
from kftune.study.config import StudyConfig, make_plans
from kftune.study.sessions.warm_start import find_candidates, placed
from tests.study.test_runner import Recorder, config, run

SPACE = Space(
    {
        "schedule": Categorical(choices=("constant", "linear")),
        "lr": Float(low=1e-4, high=1.0, log=True),
        "damping": Float(low=1e-3, high=10.0, log=True, relative_to="lr"),
        "beta1": Float(low=0.5, high=0.99, log=True, complement=True),
        "growth": Float(low=0.0, high=1.0, when=Condition("schedule", ("linear",))),
        "batch_size": Int(low=16, high=512, log=True),
    },
    {"momentum": 0.9, "nesterov": True},
)
GIVEN: dict[str, Value] = {
    "schedule": "linear",
    "lr": 0.1,
    "damping": 0.05,
    "beta1": 0.9,
    "growth": 0.25,
    "batch_size": 64.0,
    "momentum": 0.9,
    "nesterov": True,
}


def small(directory: Path, name: str = "runner", **changes: Any) -> StudyConfig:
    settings = {"optimizers": ["sgd"], "sampler": "random", "budget": {"updates": 3}, "repeats": 1}
    return config(directory, name=name, **(settings | changes))


def trials_of(study: StudyConfig) -> list[TrialRecord]:
    with Repository.open(study.storage, read_only=True) as repository:
        return repository.trials(f"{study.name}/digits_mlp/sgd")


def test_hyperparameters_become_what_is_sampled_and_resolve_to_themselves() -> None:
    params, unknown, outside = placed(SPACE, GIVEN, sampled={})
    assert params == {
        "schedule": "linear",
        "lr": 0.1,
        "damping/lr": pytest.approx(0.5),
        "1-beta1": pytest.approx(0.1),
        "growth": 0.25,
        "batch_size": 64,
    }
    assert (unknown, outside) == ((), {})
    assert SPACE.resolve(params) == pytest.approx(GIVEN)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 2.0),
        ("damping", 1e-6),
        ("damping", 1.5),
        ("beta1", 0.999),
        ("batch_size", 64.5),
        ("batch_size", 1024),
        ("schedule", "cosine"),
        ("schedule", "constant"),  # `growth` is of no use then
        ("lr", "0.1"),
        ("lr", True),
        ("momentum", 0.95),
        ("nesterov", False),
        ("epochs", 10),
    ],
)
def test_a_value_that_the_space_does_not_hold_is_named(name: str, value: Value) -> None:
    _, _, outside = placed(SPACE, GIVEN | {name: value}, sampled={})
    named = "growth" if (name, value) == ("schedule", "constant") else name
    assert named in outside
    assert set(outside) <= {named, "damping", "growth"}  # one is relative to the learning rate, one conditional


def test_a_value_that_is_relative_to_an_unknown_one_cannot_be_placed() -> None:
    params, unknown, outside = placed(SPACE, {"damping": 0.05}, sampled={})
    assert params == {}
    assert unknown == ("schedule", "lr", "beta1", "growth", "batch_size")
    assert outside == {"damping": 0.05}


def test_what_was_sampled_in_the_same_way_is_taken_as_it_was() -> None:
    ratio = 10.0  # the edge of the box; 0.7 * 10 / 0.7 need not be
    params, _, outside = placed(SPACE, GIVEN | {"lr": 0.7, "damping": 0.7 * ratio}, sampled={"damping/lr": ratio})
    assert params["damping/lr"] == ratio
    assert outside == {}
    params, _, outside = placed(SPACE, GIVEN | {"lr": 0.7, "damping": 0.7 * ratio * (1 + 1e-12)}, sampled={})
    assert params["damping/lr"] == ratio
    assert outside == {}


def test_a_fixed_value_of_the_source_is_tried_and_not_a_random_one(tmp_path: Path) -> None:
    run(small(tmp_path, "earlier", optimizers=[{"name": "sgd", "fixed": {"momentum": 0.9}}], trials=2))
    later, recorder = small(tmp_path, "later", warm_start="earlier", trials=1, seed=9), Recorder()
    run(later, recorder)
    (trial,) = trials_of(later)
    assert trial.params["1-momentum"] == pytest.approx(0.1)
    assert recorder.messages == []


def test_another_value_than_the_fixed_one_is_left_out_and_named(tmp_path: Path) -> None:
    run(small(tmp_path, "earlier", optimizers=[{"name": "sgd", "fixed": {"momentum": 0.9}}], trials=1))
    fixed = {"name": "sgd", "fixed": {"momentum": 0.5}}
    later, recorder = small(tmp_path, "later", optimizers=[fixed], warm_start="earlier", trials=1), Recorder()
    run(later, recorder)
    assert recorder.messages == [
        "later/digits_mlp/sgd: earlier/digits_mlp/sgd, trial 0 is not tried: momentum=0.9 is outside the search space"
    ]
    assert [trial.is_enqueued for trial in trials_of(later)] == [False]


def test_an_imported_sweep_is_tried_with_what_it_has_and_the_rest_is_named(tmp_path: Path) -> None:
    table = tmp_path / "sweep.csv"
    table.write_text("lr,momentum,loss\n0.1,0.9,0.2\n0.05,0.9,0.3\n")
    url = f"sqlite:///{tmp_path / 'imported.db'}"
    with Repository.open(url) as repository:
        studies = read_csv_sweep(table, problem="digits_mlp", optimizer="sgd")
        store_imported(repository, studies, file_name="sweep", objective="test_loss", source="sweep.csv")
    later = small(tmp_path, "later", warm_start=f"{tmp_path / 'imported.db'}#sweep", trials=1)
    recorder = Recorder()
    run(later, recorder)
    (trial,) = trials_of(later)
    assert (trial.params["lr"], trial.params["1-momentum"]) == (0.1, pytest.approx(0.1))
    assert recorder.messages == [
        "later/digits_mlp/sgd: sweep/digits_mlp/sgd, trial 0 has no batch_size: the sampler chooses"
    ]


def test_a_study_of_the_same_name_in_another_database_is_another_study(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    old = small(tmp_path / "old", trials=3)
    run(old)
    new, recorder = small(tmp_path, warm_start=f"{tmp_path / 'old' / 'runner.db'}#runner", trials=2, seed=5), Recorder()
    run(new, recorder)
    best = min(trials_of(old), key=lambda trial: trial.value or 0.0)
    assert trials_of(new)[0].params == best.params
    assert [trial.is_enqueued for trial in trials_of(new)] == [True, False]
    assert recorder.messages == []


def test_a_study_does_not_start_from_itself_and_says_so(tmp_path: Path) -> None:
    run(small(tmp_path, trials=1))
    recorder = Recorder()
    again = small(tmp_path, warm_start=f"{tmp_path / 'runner.db'}#runner", trials=2)
    run(again, recorder)
    assert [trial.is_enqueued for trial in trials_of(again)] == [False, False]
    (message,) = recorder.messages
    assert message.endswith("#runner has no trial of sgd to start from")


def test_a_source_that_was_taken_from_may_go(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    run(small(tmp_path / "old", "old", trials=1))
    source = tmp_path / "old" / "runner.db"
    new = small(tmp_path, warm_start=f"{source}#old", trials=1, optimizers=["sgd", "adamw"])
    assert run(new).outcome == "complete"
    source.unlink()
    more = small(tmp_path, warm_start=f"{source}#old", trials=2, optimizers=["sgd", "adamw"])
    assert run(more).outcome == "complete"
    assert [trial.is_enqueued for trial in trials_of(more)] == [True, False]
    other = small(tmp_path, warm_start=[f"{source}#old", f"{source}#older"], trials=3)
    with pytest.raises(StorageError, match="there is no database"):
        run(other)


def test_a_source_that_was_taken_from_is_known_without_its_password(tmp_path: Path) -> None:
    run(small(tmp_path, trials=1))
    source = "postgresql://me:{}@nowhere.invalid/db#old"
    again = small(tmp_path, warm_start=source.format("secret"), trials=2)
    with Repository.open(again.storage) as repository:
        study = optuna.load_study(study_name="runner/digits_mlp/sgd", storage=repository.optuna_storage)
        study.set_user_attr("kftune:warm_start", [source.format("***")])
        assert find_candidates(again, make_plans(again), repository) == []


def test_candidates_are_found_before_the_database_is_there(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    run(small(tmp_path / "old", "old", trials=1))
    new = small(tmp_path, warm_start=f"{tmp_path / 'old' / 'runner.db'}#old")
    (candidate,) = find_candidates(new, make_plans(new), None)
    assert candidate.origin == "old/digits_mlp/sgd, trial 0"
    assert not (tmp_path / "runner.db").exists()
