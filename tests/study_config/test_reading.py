"""Study files as text: YAML, numbers, overrides, round trips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kftune.errors import ConfigError
from kftune.study.config import StudyConfig, config_from_dict, load_config, locate_study, make_plans

MINIMAL = """
name: small
problems: [digits_mlp]
optimizers: [sgd, {name: adamw, space: {lr: {low: 1e-4}}, fixed: {weight_decay: 0}}]
budget: {seconds: 1}
trials: 3
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(MINIMAL)
    return path


def load(study_file: Path, *overrides: str) -> StudyConfig:
    return load_config(study_file, overrides)


def error_of(study_file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(study_file, overrides)
    return str(caught.value)


def test_what_is_not_said_has_its_default(study_file: Path) -> None:
    config = load(study_file)
    assert (config.repeats, config.startup_trials, config.seed, config.objective) == (2, 8, 0, "test_loss")
    assert config.sampler.name == "gpyopt"
    assert config.storage == "sqlite:///small.db"
    assert (config.devices, config.threads, config.dtype, config.run_timeout) == ("auto", "auto", "float32", None)
    assert (config.evaluation.points, config.evaluation.train_examples) == (20, 2000)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("sampler={name: tpe}",),
        ("devices=cpu,cpu", "threads=2", "run_timeout=90", "budget={updates: 50}"),
        ("optimizers[1].space.beta1={choices: [0.9, 0.95]}", "optimizers[0].label=plain sgd"),
        ("optimizers[1].space.lr.relative_to=", "problems[0]={name: digits_mlp, label: mlp, args: {bias: false}}"),
        ("optimizers[1].space.eps={low: 1e-9, high: 1e-6, when: {beta1: 0.9}}", "optimizers.adamw.fixed.beta1=0.9"),
    ],
)
def test_a_config_is_equal_after_storing_it_as_json(study_file: Path, overrides: tuple[str, ...]) -> None:
    config = load(study_file, *overrides)
    stored = json.loads(json.dumps(config.to_dict()))
    again = config_from_dict(stored, "the database")
    assert again == config
    assert [plan.identity() for plan in make_plans(again)] == [plan.identity() for plan in make_plans(config)]
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E3", 1000.0), ("1.5e-3", 0.0015), (".5", 0.5), ("1_000", 1000), ("'1e-3'", 0.001), ("2", 2.0)],
)
def test_numbers_are_understood_however_they_are_written(study_file: Path, text: str, value: float) -> None:
    assert load(study_file, f"budget.seconds={text}").budget.seconds == value


def test_a_whole_number_may_be_written_with_an_exponent(study_file: Path) -> None:
    assert load(study_file, "trials=1e2").trials == 100


@pytest.mark.parametrize("text", ["2024-01-01", "on", "1:30"])
def test_text_that_yaml_1_1_reads_as_something_else_stays_text(study_file: Path, text: str) -> None:
    if ":" in text:
        assert "got '1:30'" in error_of(study_file, f"name={text}")  # text, but no file's name
    else:
        assert load(study_file, f"name={text}").name == text


@pytest.mark.parametrize(
    "path",
    ["optimizers[1].fixed.eps", "optimizers.1.fixed.eps", "optimizers.adamw.fixed.eps"],
)
def test_set_reaches_items_by_index_and_by_name(study_file: Path, path: str) -> None:
    assert load(study_file, f"{path}=1e-6").optimizers[1].fixed == {"weight_decay": 0, "eps": 1e-6}


def test_set_goes_into_items_that_are_bare_names(study_file: Path) -> None:
    config = load(study_file, "optimizers.sgd.fixed.momentum=0.5", "sampler=random", "problems[0].args.bias=false")
    assert config.optimizers[0].fixed == {"momentum": 0.5}
    assert config.problems[0].args == {"bias": False}


def test_set_finds_items_by_their_labels(study_file: Path) -> None:
    config = load(study_file, "optimizers[1]={name: sgd, label: heavy}", "optimizers.heavy.fixed.momentum=0.99")
    assert [item.fixed for item in config.optimizers] == [{}, {"momentum": 0.99}]


def test_the_last_set_wins_and_the_file_is_untouched(study_file: Path) -> None:
    assert load(study_file, "trials=5", "trials=7").trials == 7
    assert load(study_file).trials == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trials", "--set: must look like key.path=value, got 'trials'"),
        ("trials..x=1", "--set: trials..x: is not a key's path"),
        ("=1", "--set: is not a key's path"),
        ("trials.x=1", "--set: trials.x: leads into 3, which is neither a mapping nor a list"),
        ("optimizers[2]=sgd", "--set: optimizers[2]: there is no item 2: optimizers has 2"),
        ("optimizers.adam.fixed.lr=1", "--set: optimizers.adam.fixed.lr: unknown item 'adam'; did you mean 'adamw'?"),
        ("trials=[1", "--set: line 1, column 3: expected ',' or ']'"),
    ],
)
def test_an_impossible_set_is_named(study_file: Path, override: str, message: str) -> None:
    assert error_of(study_file, override).startswith(message)


def test_an_error_names_the_file_or_set_whichever_it_came_from(study_file: Path) -> None:
    assert error_of(study_file, "trials=0") == "--set: trials: must be at least 1, got 0"
    study_file.write_text(MINIMAL.replace("trials: 3", "trials: 0"))
    assert error_of(study_file, "repeats=3") == f"{study_file}: trials: must be at least 1, got 0"


def test_all_flaws_are_shown_a_line_each(study_file: Path) -> None:
    lines = error_of(study_file, "trials=0", "repeats=x", "seed=-1").splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["trials", "repeats", "seed"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"- sgd\n", "must hold a mapping (key: value), got a list"),
        (b"just text", "must hold a mapping (key: value), got 'just text'"),
        (b"name: [a\n", "line 2, column 1: expected ',' or ']'"),
        (b"trials: 3\ntrials: 4\n", "line 2, column 1: the key 'trials' stands twice"),
        (b"budget:\n  seconds: 1\n  seconds: 2\n", "line 3, column 3: the key 'seconds' stands twice"),
        (b"1: 2\n", "line 1, column 1: a key must be text, got 1"),
        (b"a: 1\n---\nb: 1\n", "line 2, column 1: expected a single document in the stream, but found another"),
        (b"a: !!python/object/apply:os.getcwd []\n", "line 1, column 4: could not determine a constructor"),
        (b"name: \xff\xfe", "is not a YAML file: byte 6 is not UTF-8"),
        (b"\x00\x01", "is not a YAML file"),
        (b"[" * 2000, "is nested too deeply"),
    ],
)
def test_what_is_not_a_yaml_mapping_is_named(study_file: Path, content: bytes, message: str) -> None:
    study_file.write_bytes(content)
    error = error_of(study_file)
    assert error.startswith(f"{study_file}: {message}")
    assert "\n" not in error


def test_anchors_and_merges_of_yaml_work(study_file: Path) -> None:
    anchored = (
        "{name: sgd, label: a, fixed: &x {lr: 0.1, momentum: 0.9}}, {name: sgd, label: b, fixed: {<<: *x, lr: 0.2}}"
    )
    study_file.write_text(MINIMAL.replace("sgd,", f"{anchored},"))
    assert [item.fixed for item in load(study_file).optimizers[:2]] == [
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.2, "momentum": 0.9},
    ]


def test_a_missing_file_is_answered_with_the_nearest(study_file: Path) -> None:
    error = error_of(study_file.with_name("studdy.yaml"))
    assert error.endswith("studdy.yaml: there is no such file; did you mean 'study.yaml'?")
    assert error_of(study_file.parent).endswith("is a directory, not a study file")


def test_a_study_is_located_without_its_other_keys(study_file: Path) -> None:
    study_file.write_text("name: a b\n")
    assert locate_study(study_file).storage == "sqlite:///a b.db"
    study_file.write_text("name: a\nstorage: results/x.db\n")
    located = locate_study(study_file)
    assert (located.name, located.storage) == ("a", "sqlite:///results/x.db")
    study_file.write_text("trials: 3\n")
    with pytest.raises(ConfigError, match="name: is missing"):
        locate_study(study_file)


def test_a_password_is_not_stored(study_file: Path) -> None:
    config = load(study_file, "storage=postgresql+psycopg://me:secret@host:5432/db")
    assert "secret" in config.storage
    assert config.to_dict()["storage"] == "postgresql+psycopg://me:***@host:5432/db"
    started = load(study_file, 'warm_start=["postgresql+psycopg://me:secret@host:5432/db#mnist", other]')
    assert "secret" in started.warm_start[0].source
    assert [start["from"] for start in started.to_dict()["warm_start"]] == [
        "postgresql+psycopg://me:***@host:5432/db#mnist",
        "other",
    ]


def test_threads_are_shared_out_among_the_workers(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    auto, fixed = load(study_file), load(study_file, "threads=3")
    slots: list[Any] = [["cpu"], ["cpu"] * 2, ["cpu"] * 3, ["cpu"] * 9]
    assert [auto.threads_per_worker(devices) for devices in slots] == [8, 4, 2, 1]
    assert [fixed.threads_per_worker(devices) for devices in slots] == [3] * 4
