"""``--retry crashed``: what one's own bug has crashed is made again, and is then as if there had been no bug."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kftune.results import Outcome
from kftune.storage.repository import Repository
from tests.cli.conftest import Command, spawn

PROBLEM = """\
from dataclasses import replace

import torch

from kftune.problems import PROBLEMS


class Own(torch.nn.Linear):
    def forward(self, inputs):
        {line}
        return super().forward(inputs)


def problem(*, device, dtype, data_dir):
    digits = PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)
    return replace(digits, name="own", make_model=lambda: Own(64, 10))
"""
BROKEN, MENDED = "if self.training: raise KeyError('mine')", "pass"
STUDY = """\
name: own
problems: [{target: "own:problem", name: own}]
optimizers: [{name: sgd, fixed: {batch_size: 64}}]
budget: {updates: 3}
trials: 3
repeats: 2
startup_trials: 2
sampler: tpe
threads: 1
devices: cpu
evaluation: {points: 2}
"""


@pytest.fixture
def own(workdir: Path) -> Path:
    (workdir / "study.yaml").write_text(STUDY)
    return workdir


def write(directory: Path, line: str) -> None:
    (directory / "own.py").write_text(PROBLEM.replace("{line}", line))


def stored(database: str, purpose: Any = "search") -> list[Any]:
    with Repository.open(f"sqlite:///{database}", read_only=True) as repository:
        trials = {t.number: (t.state, t.value) for t in repository.trials("own/own/sgd")}
        runs = repository.runs(purpose=purpose)
    return [(r.trial, r.repeat, r.seed, r.params, [p.test_loss for p in r.result.curve], trials[r.trial]) for r in runs]


@pytest.mark.parametrize("again", [["run", "study.yaml"], ["resume", "own"]], ids=" ".join)
def test_crashed_runs_are_made_again_as_if_there_had_been_no_bug(own: Path, kftune: Command, again: list[str]) -> None:
    write(own, BROKEN)
    result = spawn("run", "study.yaml", cwd=own)
    assert result.code == 1
    assert result.out.rstrip().endswith("go on with: kftune run study.yaml --retry crashed")
    write(own, MENDED)
    result = spawn(*again, "--retry", "crashed", cwd=own)
    assert (result.code, result.err) == (0, "")
    assert "own/own/sgd: 3 crashed runs are made again" in result.out
    found = stored("own.db")
    with Repository.open("sqlite:///own.db", read_only=True) as repository:
        superseded = [(r.trial, r.repeat, r.attempt, r.result.outcome) for r in repository.runs(superseded=True)]
        attempts = [run.attempt for run in repository.runs()]
    assert superseded == [(0, 0, 1, Outcome.CRASHED), (0, 1, 1, Outcome.CRASHED), (1, 0, 1, Outcome.CRASHED)]
    assert attempts == [2, 2, 2, 1, 1, 1]
    assert spawn("run", "study.yaml", "--storage", "fresh.db", cwd=own).code == 0
    assert found == stored("fresh.db")
    result = spawn(*again, "--retry", "crashed", cwd=own)
    assert "no run of own has crashed, so none is made again" in result.out
    assert "own is complete already" in result.out


def test_what_a_confirmation_has_crashed_likewise(own: Path, kftune: Command) -> None:
    write(own, MENDED)
    assert spawn("run", "study.yaml", "--set", "trials=1", cwd=own).code == 0
    write(own, BROKEN)
    confirm = ("confirm", "own", "--top", "1", "--seeds", "2")
    assert spawn(*confirm, cwd=own).code == 0  # two crashes are not three
    write(own, MENDED)
    assert "confirmed already" in spawn(*confirm, cwd=own).out
    before = stored("own.db")
    result = spawn(*confirm, "--retry", "crashed", cwd=own)
    assert (result.code, "2 crashed runs are made again" in result.out) == (0, True)
    assert [len(run[4]) for run in stored("own.db", "confirm")] == [3, 3]
    assert stored("own.db") == before


def test_other_outcomes_are_refused(own: Path, kftune: Command) -> None:
    result = kftune("run", "study.yaml", "--retry", "diverged")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "crashed" in result.err
    assert not (own / "own.db").exists()
