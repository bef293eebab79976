"""What is checked before a study is run or goes on, and with which settings it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import optuna

from kftune.storage.repository import Repository
from tests.cli.conftest import Command

ONLY_SGD = "optimizers=[{name: sgd, fixed: {batch_size: 64, momentum: 0.9}}]"

GRID = """\
name: edge
problems: [digits_mlp]
optimizers:
  - name: sgd
    fixed: {batch_size: 64, momentum: 0.9}
    space: {lr: {low: 1.0e-6, high: 1.0e-3, log: true}, weight_decay: {low: 1.0e-9, high: 1.0e-8, log: true}}
  - name: sgd
    label: small
    fixed: {batch_size: 64, momentum: 0.9, weight_decay: 0.0}
    space: {lr: {low: 1.0e-4, high: 1.0e-3, log: true}}
budget: {updates: 5}
trials: 30
repeats: 1
sampler: {name: grid, extend: 0}
threads: 1
evaluation: {points: 1}
"""


def test_a_study_goes_on_as_it_was_last_run(kftune: Command, finished: Path) -> None:
    assert kftune("run", "study.yaml", "--set", ONLY_SGD, "--set", "trials=3").code == 0
    result = kftune("resume")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("small is complete already: every study has its 3 trials; nothing to do\n")
    with Repository.open("sqlite:///small.db", read_only=True) as repository:
        assert [(record.optimizer, record.n_trials) for record in repository.studies()] == [("sgd", 3), ("kfac", 2)]


def test_a_dry_run_refuses_what_the_run_would(kftune: Command, finished: Path) -> None:
    before = finished.read_bytes()
    for setting, message in (
        ("repeats=3", "study 'small/digits_mlp/sgd' is stored with another configuration (repeats: 2 → 3)"),
        ("warm_start=[smal]", "unknown study to start from 'smal'; did you mean 'small'?"),
        ("warm_start=[nowhere.db#small]", "there is no database nowhere.db"),
    ):
        result = kftune("run", "study.yaml", "--dry-run", "--set", setting)
        assert (result.code, len(result.err.splitlines())) == (2, 1)
        assert message in result.err
        assert "all checks passed" not in result.out
    assert kftune("run", "study.yaml", "--dry-run", "--set", "trials=5").code == 0
    assert finished.read_bytes() == before


def test_a_dry_run_checks_where_there_is_no_database_of_ours_yet(kftune: Command, study_file: Path) -> None:
    for arguments, message in (
        (("--storage", "nowhere/new.db"), "nowhere is not a directory"),
        (("--set", "warm_start=[other]"), "unknown study to start from 'other'"),
    ):
        result = kftune("run", "study.yaml", "--dry-run", *arguments)
        assert (result.code, len(result.err.splitlines())) == (2, 1)
        assert message in result.err
    assert list(study_file.parent.iterdir()) == [study_file]
    optuna.create_study(study_name="another", storage="sqlite:///small.db")
    result = kftune("run", "study.yaml", "--dry-run")
    assert (result.code, result.err) == (0, "")


def test_devices_are_checked_before_anything_is_widened(kftune: Command, finished: Path) -> None:
    before = finished.read_bytes()
    result = kftune("resume", "--widen", "--devices", "cuda:99")
    assert result.code == 2
    assert "cuda:99" in result.err
    assert finished.read_bytes() == before


def test_a_widened_study_goes_on_from_what_is_stored(kftune: Command, workdir: Path) -> None:
    (workdir / "edge.yaml").write_text(GRID)
    assert kftune("run", "edge.yaml", "--set", "limit.trials=100").code == 0
    result = kftune("resume", "--widen", "--set", "trials=31", "--set", "limit.hours=1e-9")
    assert (result.code, result.err) == (0, "")
    assert "go on with: kftune resume edge-wide --storage sqlite:///edge.db\n" in result.out
    with Repository.open("sqlite:///edge.db", read_only=True) as repository:
        config = repository.studies("edge-wide")[0].config
    assert (config["trials"], config["limit"]) == (62, {"trials": 200, "hours": 1e-9})


def test_a_grid_has_as_many_trials_as_configurations(kftune: Command, workdir: Path) -> None:
    (workdir / "edge.yaml").write_text(GRID)
    result = kftune("validate", "edge.yaml")
    assert "3 to 21 trials of each × 1 run × 5 updates" in result.out
    assert "the grid has no more configurations; if it grows, at most 30 trials of each\n" in result.out
    assert "24 runs in all\n" in result.out
    limited = ("validate", "edge.yaml", "--set", "limit={trials: 10, hours: 2}", "--set", "repeats=2")
    assert "stops after 10 trials of all studies or after 2 h of wall time\n" in kftune(*limited).out
    found = json.loads(kftune(*limited, "--json").out)
    assert [study["n_trials"] for study in found["studies"]] == [21, 3]
    assert (found["n_trials"], found["n_runs"], found["limit"]) == (10, 20, {"trials": 10, "hours": 2.0})
