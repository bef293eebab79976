import math

import optuna
import pytest

from kftune.errors import StorageError, StudyChangedError
from kftune.storage._differences import differences
from kftune.storage.repository import Repository
from tests.storage.builders import study_record

IDENTITY = study_record().identity


def test_registering_again_changes_nothing(repository: Repository) -> None:
    repository.register([study_record()])
    assert repository.studies() == [study_record()]
    assert len(optuna.get_all_study_names(repository.optuna_storage)) == 1


def test_more_trials_are_no_other_study(repository: Repository) -> None:
    more = study_record(n_trials=48, n_train=1437, config={"name": "demo", "trials": 48})
    repository.register([more])
    assert repository.studies() == [more]


def test_a_study_that_left_the_file_gets_the_config_that_was_last_run(repository: Repository) -> None:
    optimizer = {"optimizer": "sgd", "identity": {**IDENTITY, "optimizer": "sgd"}}
    now = {"name": "demo", "repeats": 2, "trials": 48, "optimizers": ["sgd"]}
    of_another_file = study_record(file_name="other")
    repository.register([of_another_file])
    repository.register([study_record(**optimizer, config=now, n_trials=48)])
    first, other, last = repository.studies()
    assert (first.config, first.n_trials) == (now, 24)  # how many trials it has is its own
    assert last.config == now
    assert other == of_another_file


def test_a_study_of_the_file_with_other_settings_keeps_its_config(repository: Repository) -> None:
    identity = {**IDENTITY, "repeats": 5, "optimizer": "sgd"}
    config = {"name": "demo", "repeats": 5}
    repository.register([study_record(optimizer="sgd", identity=identity, config=config)])
    assert [record.config for record in repository.studies()] == [study_record().config, config]


def test_checking_refuses_as_registering_does_and_stores_nothing(url: str, repository: Repository) -> None:
    optuna.create_study(study_name="demo/digits/sgd", storage=repository.optuna_storage).ask()
    with Repository.open(url, read_only=True) as reading:
        assert reading.check([study_record(), study_record(optimizer="foof")]) == {study_record().study: study_record()}
        with pytest.raises(StudyChangedError, match="repeats: 2 → 5"):
            reading.check([study_record(identity={**IDENTITY, "repeats": 5})])
        with pytest.raises(StorageError, match="'demo/digits/sgd' with trials that kftune did not make"):
            reading.check([study_record(optimizer="sgd")])
    assert repository.studies() == [study_record()]


def test_another_identity_is_refused_with_the_difference(repository: Repository) -> None:
    changed = {**IDENTITY, "budget": {"seconds": 2.0, "updates": None}}
    with pytest.raises(StudyChangedError, match=r"budget\.seconds: 1\.0 → 2\.0") as raised:
        repository.register([study_record(identity=changed, n_trials=48)])
    assert raised.value.differences == ("budget.seconds: 1.0 → 2.0",)
    assert repository.studies() == [study_record()]


def test_all_are_registered_or_none(repository: Repository) -> None:
    changed = study_record(identity={**IDENTITY, "repeats": 5})
    with pytest.raises(StudyChangedError):
        repository.register([study_record(optimizer="sgd"), changed, study_record(optimizer="foof")])
    assert repository.studies() == [study_record()]
    assert optuna.get_all_study_names(repository.optuna_storage) == [study_record().study]


def test_an_optuna_study_without_trials_is_taken_over(repository: Repository) -> None:
    # As a kill between making Optuna's study and storing ours leaves it.
    optuna.create_study(study_name="demo/digits/sgd", storage=repository.optuna_storage)
    repository.register([study_record(optimizer="sgd")])
    assert [record.optimizer for record in repository.studies()] == ["kfac", "sgd"]


def test_somebody_elses_optuna_study_is_left_alone(repository: Repository) -> None:
    optuna.create_study(study_name="demo/digits/sgd", storage=repository.optuna_storage).ask()
    with pytest.raises(StorageError, match="'demo/digits/sgd' with trials that kftune did not make"):
        repository.register([study_record(optimizer="sgd")])
    assert [record.optimizer for record in repository.studies()] == ["kfac"]


@pytest.mark.parametrize(
    ("stored", "now", "lines"),
    [
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": (1, 2)}, {"a": [1, 2]}, []),
        ({"a": math.nan}, {"a": math.nan}, []),
        ({"a": math.nan}, {"a": 1.0}, ["a: NaN → 1.0"]),
        ({"a": True}, {"a": 1}, ["a: true → 1"]),
        ({"a": "tpe"}, {"a": "random"}, ["a: tpe → random"]),
        ({"a": "1"}, {"a": 1}, ['a: "1" → 1']),
        ({"a": {"b": {"c": None}}}, {"a": {"b": {"c": 200}}}, ["a.b.c: null → 200"]),
        ({"a": [{"low": 1}, {"low": 2}]}, {"a": [{"low": 1}, {"low": 3}]}, ["a[1].low: 2 → 3"]),
        ({"a": 1}, {"b": 1}, ["a: 1 → (absent)", "b: (absent) → 1"]),
        ({"a": ["x"]}, {"a": ["x", "y"]}, ["a[1]: (absent) → y"]),
        ({}, {"a": ""}, ['a: (absent) → ""']),
    ],
)
def test_differences_are_readable(stored: dict[str, object], now: dict[str, object], lines: list[str]) -> None:
    assert differences(stored, now) == lines
