"""Every mistake is answered with one clear line and exit code 2, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kftune.study.sessions.lock import sole_runner
from tests.cli.conftest import STUDY, Command, spawn
from tests.processes.database import connected

MISTAKES = [
    # (what is replaced in the study file, by what, the line)
    ("trials: 2", "trails: 2\ntrials: 2", "trails: unknown key 'trails'; did you mean 'trials'? (available: budget, "),
    ("name: kfac", "name: kfak", "optimizers[1].name: unknown optimizer 'kfak'; did you mean 'kfac'? (available: "),
    ("digits_mlp", "digit_mlp", "problems[0].name: unknown problem 'digit_mlp'; did you mean 'digits_mlp'? (available"),
    ("sampler: random", "sampler: rnd", "sampler: unknown sampler 'rnd'; did you mean 'random'? (available: cmaes"),
    ("trials: 2", "trials: many", "trials: must be a whole number, got 'many'"),
    ("trials: 2", "trials: 0", "trials: must be at least 1, got 0"),
    ("repeats: 2", "repeats: -1", "repeats: must be at least 1, got -1"),
    ("repeats: 2", "repeats: [2]", "repeats: must be a whole number, got a list"),
    ("updates: 5", "seconds: 0", "budget.seconds: must be above 0, got 0"),
    (
        "updates: 5",
        "updates: 5, seconds: 1",
        "budget: give either seconds or updates, got both budget.seconds and budg",
    ),
    ("low: 1e-3", "low: 2", "optimizers[1].space.damping.low: must not be above high (1), got 2"),
    ("low: 1e-3", "low: 0", "optimizers[1].space.damping.low: must be above 0 on a log scale, got 0"),
    (
        "damping:",
        "dampin:",
        "optimizers[1].space.dampin: kfac has no hyperparameter 'dampin'; did you mean 'damping'? (",
    ),
    (
        "momentum: 0.9",
        "schedule: cosin",
        "optimizers[0].fixed.schedule: must be 'constant', 'linear', 'cosine', 'wsd' or 'step', got 'cosin'",
    ),
    ("momentum: 0.9", "schedule: step", "optimizers[0].fixed.schedule: schedule step needs milestones"),
    ("momentum: 0.9", "final_lr: 0.1", "optimizers[0].fixed.final_lr: final_lr needs schedule"),
    ("momentum: 0.9", "warmup: 1.5", "optimizers[0].fixed.warmup: warmup must be in [0, 1), got 1.5"),
    (
        "momentum: 0.9",
        "schedule: step, milestones: [3, 7], schedule_by: updates",
        "optimizers[0].fixed.milestones: milestones must be before the budget's end after 5 updates, got 7",
    ),
    (
        "momentum: 0.9",
        "schedule: step, milestones: [0.7, 0.2]",
        "optimizers[0].fixed.milestones: milestones must be positive numbers in ascending order, such as 0.5, 0.75",
    ),
    (
        "momentum: 0.9",
        "damping_schedule: cosine",
        "optimizers[0].fixed.damping_schedule: sgd has no hyperparameter 'damping_schedule'; did you mean '",
    ),
    (
        "momentum: 0.9",
        "schedule: {target: 'torch.optim.lr_scheduler:OneCycle'}",
        "optimizers[0].fixed.schedule: schedule torch.optim.lr_scheduler:OneCycle: 'torch.optim.lr_sch",
    ),
    (
        "momentum: 0.9",
        "schedule: {target: 'torch.optim.lr_scheduler:OneCycleLR'}",
        "optimizers[0].fixed.schedule: schedule torch.optim.lr_scheduler:OneCycleLR refuses its args: ",
    ),
    (
        "momentum: 0.9",
        "schedule: {target: 'torch.optim:SGD'}",
        "optimizers[0].fixed.schedule: schedule torch.optim:SGD is no scheduler of torch (torch.optim.lr_",
    ),
    ("momentum: 0.9", "momentun: 0.9", "optimizers[0].fixed.momentun: sgd has no hyperparameter 'momentun'; did you m"),
    ("momentum: 0.9", "momentum: 1.5", "optimizers[0].fixed.momentum: momentum must be in [0, 1), got 1.5"),
    ("batch_size: 64", "batch_size: 5000", "optimizers[0].fixed.batch_size: must be at most 1437, the training exampl"),
    (
        "name: small",
        "name: a/b",
        "name: must begin with a letter or digit and hold only letters, digits, spaces and . _",
    ),
    ("threads: 1", "threads: 1\ndevices: gpu", "devices: unknown device 'gpu'; did you mean 'cpu'? (available: auto, "),
    (
        "threads: 1",
        "threads: 1\nobjective: test_los",
        "objective: unknown objective 'test_los'; did you mean 'test_loss'",
    ),
    ("threads: 1", "threads: 1\nthreads: 2", "line 12, column 1: the key 'threads' stands twice"),
    ("budget: {", "budget: [", "line 6, column 20: expected ',' or ']', but got '}'"),
]


def assert_one_line(code: int, out: str, err: str, begins: str) -> None:
    assert code == 2
    assert out == ""
    assert err.startswith(f"error: {begins}")
    assert err.count("\n") == 1
    assert err.endswith("\n")


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize(("old", "new", "line"), MISTAKES, ids=[new for _, new, _ in MISTAKES])
def test_a_mistake_in_the_study_file(
    kftune: Command, study_file: Path, command: str, old: str, new: str, line: str
) -> None:
    assert old in STUDY
    study_file.write_text(STUDY.replace(old, new, 1))
    assert_one_line(*kftune(command, "study.yaml"), f"study.yaml: {line}")
    assert list(study_file.parent.iterdir()) == [study_file]


def test_it_is_the_same_in_a_process_of_its_own(study_file: Path) -> None:
    result = spawn("run", "study.yaml", "--set", "optimizers.kfac.space.damping.low=0", cwd=study_file.parent)
    assert_one_line(*result, "--set: optimizers[1].space.damping.low: must be above 0 on a log scale, got 0")
    assert list(study_file.parent.iterdir()) == [study_file]


def test_several_mistakes_are_several_lines(kftune: Command, study_file: Path) -> None:
    result = kftune("run", "study.yaml", "--set", "trials=0", "--set", "repeats=0")
    assert result.err.splitlines() == [
        "error: --set: trials: must be at least 1, got 0",
        "error: --set: repeats: must be at least 1, got 0",
    ]


def test_a_file_that_cannot_be_read(kftune: Command, workdir: Path) -> None:
    (workdir / "study.yml").write_text(STUDY)
    (workdir / "picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n")
    (workdir / "empty.yaml").touch()
    near = "study.yaml: there is no such file; did you mean 'study.yml'?"
    assert_one_line(*kftune("run", "study.yaml"), near)
    assert_one_line(*kftune("run", "picture.yaml"), "picture.yaml: is not a YAML file: byte 0 is not UTF-8 text")
    assert_one_line(*kftune("run", "empty.yaml"), "empty.yaml: is empty; `kftune init` writes a study file")
    assert_one_line(*kftune("run", "."), ".: is a directory, not a study file")
    for command in ("status", "best", "dashboard", "validate"):
        assert_one_line(*kftune(command, "study.yaml"), near)


@pytest.mark.parametrize("command", ["run", "validate", "status", "best", "dashboard", "resume", "list", "init"])
def test_an_unknown_option(kftune: Command, study_file: Path, command: str) -> None:
    assert_one_line(*kftune(command, "--trails", "3"), "No such option: --trails")


def test_an_unknown_command(kftune: Command) -> None:
    assert_one_line(*kftune("rnu"), "No such command 'rnu'. Did you mean 'run'?")


@pytest.mark.parametrize(
    ("devices", "line"),
    [
        ("tpu", "--devices: unknown device 'tpu'; did you mean 'cpu'? (available: auto, cpu, cuda, cuda:0)"),
        ("cuda:99", "--devices: there is no device 'cuda:99' in this machine (available: cpu"),
    ],
)
def test_a_device_that_is_not_there(kftune: Command, study_file: Path, devices: str, line: str) -> None:
    assert_one_line(*kftune("run", "study.yaml", "--devices", devices), line)
    assert list(study_file.parent.iterdir()) == [study_file]


@pytest.mark.parametrize("command", [["validate"], ["run"], ["run", "--dry-run"]], ids=" ".join)
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "[cpu, cuda]"])
def test_a_study_file_for_another_machine(
    kftune: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], device: str
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    study_file.write_text(f"{STUDY}devices: {device}\n")
    name = device.strip("[]").split(", ")[-1]
    line = f"study.yaml: devices: there is no device {name!r} in this machine (available: cpu)"
    assert_one_line(*kftune(*command, "study.yaml"), line)
    assert list(study_file.parent.iterdir()) == [study_file]
    assert kftune("validate", "study.yaml", "--devices", "cpu").code == 0


def test_data_that_are_not_there(kftune: Command, study_file: Path) -> None:
    result = kftune("run", "study.yaml", "--set", "problems=[mnist_mlp]", "--data-dir", "nowhere")
    assert_one_line(*result, "mnist: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz")
    assert "not found in nowhere/mnist; run `kftune data fetch mnist`" in result.err
    assert list(study_file.parent.iterdir()) == [study_file]


def test_a_dataset_that_does_not_exist(kftune: Command) -> None:
    assert_one_line(*kftune("data", "fetch", "mnst"), "unknown dataset 'mnst'; did you mean 'mnist'? (available: ")


def test_a_directory_that_cannot_be_written(kftune: Command, study_file: Path) -> None:
    (study_file.parent / "file").write_text("not a directory")
    result = kftune("run", "study.yaml", "--storage", "file/small.db")
    assert_one_line(*result, "")
    assert "file/small.db" in result.err
    assert_one_line(*kftune("init", "file/study.yaml"), "file/study.yaml cannot be written: Not a directory")
    assert_one_line(*kftune("init", "missing/study.yaml"), "missing/study.yaml cannot be written: No such file")


def test_a_database_from_a_newer_version(kftune: Command, finished: Path) -> None:
    with connected(finished) as connection:
        connection.execute("UPDATE kftune_alembic_version SET version_num = '0999'")
    connection.close()
    before = finished.read_bytes()
    for command in (["run", "study.yaml", "--set", "trials=3"], ["status"], ["best"], ["dashboard"], ["resume"]):
        result = kftune(*command)
        assert_one_line(*result, "")
        assert "written by a later kftune" in result.err
    assert finished.read_bytes() == before


def test_what_is_not_a_database(kftune: Command, study_file: Path) -> None:
    (study_file.parent / "small.db").write_text("this is no database, it only says so " * 100)
    for command in (["run", "study.yaml"], ["status"], ["resume"]):
        result = kftune(*command)
        assert_one_line(*result, "")
        assert "small.db" in result.err
    assert_one_line(*kftune("status", "--storage", "mysql://x"), "--storage: must be a sqlite:/// or postgresql:// URL")


def test_the_same_name_with_another_configuration(kftune: Command, finished: Path) -> None:
    before = finished.read_bytes()
    result = kftune("run", "study.yaml", "--set", "budget.updates=6", "--set", "optimizers.sgd.fixed.momentum=0.8")
    assert_one_line(
        *result, "study 'small/digits_mlp/sgd' is stored with another configuration (budget.updates: 5 → 6; "
    )
    assert "space.fixed.momentum: 0.9 → 0.8" in result.err
    assert finished.read_bytes() == before
    assert_one_line(*kftune("resume", "--set", "seed=1"), "study 'small/digits_mlp/sgd' is stored with another")
    assert finished.read_bytes() == before


def test_a_study_that_another_process_is_running(kftune: Command, finished: Path) -> None:
    with sole_runner(finished):
        line = f"small.db: another kftune (process {os.getpid()}) is running studies in it now"
        assert_one_line(*kftune("run", "study.yaml", "--set", "trials=3"), line)
        assert kftune("status").code == 0


def test_no_database_or_too_many(kftune: Command, finished: Path) -> None:
    assert_one_line(*kftune("status", "smal"), "unknown study 'smal'; did you mean 'small'? (available: small)")
    assert_one_line(*kftune("status", "other.yaml"), "other.yaml: there is no such file; did you mean 'study.yaml'?")
    finished.with_name("zoo.db").write_bytes(finished.read_bytes())
    several = "several databases are in this directory (small.db, zoo.db); choose one with --storage"
    for command in ("status", "best", "dashboard", "resume"):
        assert_one_line(*kftune(command), several)
        assert kftune(command, "small").code == 0  # the one called like the study
    for path in (finished, finished.with_name("zoo.db")):
        path.unlink()
    assert_one_line(*kftune("status"), "there is no database (*.db) in this directory; name the study file, or use")
    result = kftune("status", "study.yaml")
    assert_one_line(*result, "")
    assert "small.db" in result.err
    assert not finished.exists()


def test_best_of_nothing(kftune: Command, finished: Path) -> None:
    assert_one_line(*kftune("best", "--top", "0"), "Invalid value for '--top'")


def test_an_unknown_name_to_describe(kftune: Command) -> None:
    near = "unknown optimizer, problem or sampler 'kfacc'; did you mean 'kfac'? (available: adamw, "
    assert_one_line(*kftune("describe", "kfacc"), near)


def test_init_refuses_to_overwrite_and_unknown_names(kftune: Command, study_file: Path) -> None:
    assert_one_line(*kftune("init"), "study.yaml is there already; --force overwrites it")
    assert study_file.read_text() == STUDY
    unknown = "new.yaml: optimizers[1].name: unknown optimizer 'kfacc'; did you mean 'kfac'? (available: adamw, "
    assert_one_line(*kftune("init", "new.yaml", "--optimizers", "sgd,kfacc"), unknown)
    assert not study_file.with_name("new.yaml").exists()
