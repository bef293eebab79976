"""``run`` and ``resume`` with real processes and databases."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from kftune.cli._session import Sitting
from kftune.storage.repository import Repository
from tests.cli.conftest import STUDY, Command, spawn
from tests.processes.warm import WarmPopen

CRASHING_PLUGIN = """
from dataclasses import replace

import torch

from kftune.problems import PROBLEMS, ProblemEntry


class Broken(torch.nn.Linear):
    def forward(self, inputs):
        if self.training:
            raise ValueError("a mistake of the user's own")
        return super().forward(inputs)


def load(*, device, dtype, data_dir):
    digits = PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)
    return replace(digits, name="broken", make_model=lambda: Broken(64, 10))


broken = ProblemEntry(name="broken", load=load, summary="raises", source="tests", n_train=1437, n_test=360)
"""


def runs_of(database: Path, cwd: Path) -> dict[str, tuple[int, int, bool]]:
    """Optimizer → (finished trials, runs, complete)."""
    status = json.loads(spawn("status", "--storage", str(database), "--json", cwd=cwd).out)
    studies = status["files"][0]["studies"]
    return {study["optimizer"]: (study["n_finished"], study["n_runs"], study["is_complete"]) for study in studies}


def test_a_complete_study_is_left_alone(kftune: Command, finished: Path) -> None:
    before = finished.read_bytes()
    for command in (["run", "study.yaml"], ["resume"], ["resume", "small", "--storage", "small.db"]):
        result = kftune(*command)
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith("small is complete already: every study has its 2 trials; nothing to do\n")
        assert "kftune dashboard small --storage small.db" in result.out
    assert runs_of(finished, finished.parent) == {"sgd": (2, 4, True), "kfac": (2, 4, True)}
    assert finished.read_bytes() == before


def test_a_dry_run_checks_and_writes_nothing(kftune: Command, study_file: Path) -> None:
    result = kftune("run", "study.yaml", "--dry-run", "--devices", "cpu,cpu")
    assert (result.code, result.err) == (0, "")
    assert "8 runs in all" in result.out
    assert "devices: cpu, cpu" in result.out
    assert list(study_file.parent.iterdir()) == [study_file]


def test_more_trials_are_added_from_the_database_alone_wherever_it_is(kftune: Command, finished: Path) -> None:
    moved = finished.with_name("elsewhere").joinpath("results.db")
    moved.parent.mkdir()
    finished.rename(moved)
    finished.with_name("study.yaml").unlink()
    result = spawn("resume", "--storage", "elsewhere/results.db", "--set", "trials=3", cwd=finished.parent)
    assert (result.code, result.err) == (0, "")
    assert "12 runs, 8 of them done already" in result.out
    assert "best 3 of 3 trials" in result.out
    assert "\x1b" not in result.out
    assert runs_of(moved, finished.parent) == {"sgd": (3, 6, True), "kfac": (3, 6, True)}
    assert not finished.exists()
    assert kftune("resume", "--storage", "elsewhere/results.db").out.startswith("small is complete already")


def test_ctrl_c_finishes_the_run_says_how_to_go_on_and_the_same_command_does(study_file: Path) -> None:
    study_file.write_text(STUDY.replace("{updates: 5}", "{seconds: 0.3}"))
    command = [sys.executable, "-m", "kftune", "run", "study.yaml", "--set", "trials=1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = WarmPopen(
        command, cwd=study_file.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert "2 studies of 1 trial, 4 runs, on cpu" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "finishing the run in progress; Ctrl-C again stops at once\n"
    assert "Go on with: kftune run study.yaml --set trials=1\n" in out
    stored = runs_of(study_file.with_name("small.db"), study_file.parent)
    assert sum(n_runs for _, n_runs, _ in stored.values()) <= 1
    assert not any(complete for _, _, complete in stored.values())
    assert "Go on with: kftune resume small --storage small.db" in spawn("status", cwd=study_file.parent).out

    assert spawn("run", "study.yaml", "--set", "trials=1", cwd=study_file.parent).code == 0
    assert runs_of(study_file.with_name("small.db"), study_file.parent) == {"sgd": (1, 2, True), "kfac": (1, 2, True)}


def test_ctrl_c_twice_stops_at_once(study_file: Path) -> None:
    study_file.write_text(STUDY.replace("{updates: 5}", "{seconds: 600}"))
    command = [sys.executable, "-m", "kftune", "run", "study.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = WarmPopen(
        command, cwd=study_file.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert "8 runs, on cpu" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again stops at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == ""
    assert out.endswith("stopped; every finished run is stored. Go on with: kftune run study.yaml\n")


def test_a_study_that_crashes_again_and_again_stops_with_the_users_traceback(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = study_file.parent / "site"
    info = site / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "broken_plugin.py").write_text(CRASHING_PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kftune.problems]\nbroken = broken_plugin:broken\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    arguments = ("--set", "problems=[broken]", "--set", "optimizers=[sgd]", "--set", "trials=9")
    result = spawn("run", "study.yaml", *arguments, cwd=study_file.parent)
    assert result.code == 1
    assert result.err.count("Traceback (most recent call last)") == 1
    assert "ValueError: a mistake of the user's own" in result.err
    assert result.out.rstrip().endswith("--set trials=9 --retry crashed")


def test_the_best_are_confirmed_on_more_seeds_and_for_longer(kftune: Command, finished: Path) -> None:
    command = ("confirm", "--top", "1", "--seeds", "3", "--budget-factor", "1,2")
    before = finished.read_bytes()
    refused = kftune("confirm", "--budget-factor", "1,0")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "error: --budget-factor: each must be above 0, got '1,0'\n"
    assert finished.read_bytes() == before

    result = kftune(*command)
    assert (result.code, result.err) == (0, "")
    assert "small: 2 studies of 2 trials, 12 runs, on cpu" in result.out
    assert "[12/12 runs, done]" in result.out
    verdict = json.loads(kftune("compare", "--json").out)
    assert "confirm" in json.dumps(verdict)
    with Repository.open("sqlite:///small.db", read_only=True) as repository:
        runs = repository.runs(purpose="confirm")
        best = {
            study: min(repository.trials(study), key=lambda trial: trial.value or 0.0).number
            for study in ("small/digits_mlp/sgd", "small/digits_mlp/kfac")
        }
    assert sorted((run.study, run.trial, run.budget_factor, run.repeat, run.result.updates) for run in runs) == sorted(
        (study, trial, factor, repeat, round(5 * factor))
        for study, trial in best.items()
        for factor in (1.0, 2.0)
        for repeat in range(3)
    )
    again = kftune(*command)
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("small is confirmed already, at these seeds and budgets; kftune compare shows it\n")
    assert runs_of(finished, finished.parent) == {"sgd": (2, 4, True), "kfac": (2, 4, True)}


EDGE = """\
name: edge
problems: [digits_mlp]
optimizers:
  - name: sgd
    fixed: {batch_size: 64, momentum: 0.9}
    space: {lr: {low: 1.0e-4, high: 1.0e-3, log: true}, weight_decay: {low: 1.0e-9, high: 1.0e-8, log: true}}
budget: {updates: 10}
trials: 20
repeats: 1
sampler: {name: grid, extend: EXTEND}
threads: 1
evaluation: {points: 1}
"""


def learning_rates(study: str) -> list[float]:
    with Repository.open("sqlite:///edge.db", read_only=True) as repository:
        assert {trial.state for trial in repository.trials(study)} == {"complete"}
        return [float(trial.params["lr"] or 0.0) for trial in repository.trials(study)]


def test_a_search_goes_on_in_a_wider_box(kftune: Command, workdir: Path) -> None:
    """Fifteen configurations, of which the three with the largest of five learning rates are the best."""
    (workdir / "edge.yaml").write_text(EDGE.replace("EXTEND", "0").replace("low: 1.0e-4", "low: 1.0e-5"))
    assert kftune("run", "edge.yaml").code == 0
    result = kftune("resume", "--widen")
    assert (result.code, result.err) == (0, "")
    assert "edge-wide/digits_mlp/sgd begins with 15 trials of edge/digits_mlp/sgd" in result.out
    old, wide = learning_rates("edge/digits_mlp/sgd"), learning_rates("edge-wide/digits_mlp/sgd")
    assert wide[:15] == old
    assert sorted(wide[15:]) == [3e-3] * 3 + [1e-2] * 3
    assert "best 4 of 21 trials" in kftune("best", "edge-wide").out
    refused = kftune("resume", "--widen")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "holds several studies: name one of edge, edge-wide" in refused.err


def test_two_workers_share_a_grid_that_grows(workdir: Path) -> None:
    """It grows with whichever of the trials at once ends last."""
    (workdir / "edge.yaml").write_text(EDGE.replace("EXTEND", "1"))
    fixed = "optimizers.0.space.weight_decay={low: 1.0e-9, high: 1.0e-9, log: true}"
    result = spawn("run", "edge.yaml", "--workers", "2", "--set", fixed, cwd=workdir)
    assert (result.code, result.err) == (0, ""), result.out
    assert "3 runs, on cpu, cpu" in result.out
    assert "[4/4 runs, done]" in result.out
    assert sorted(learning_rates("edge/digits_mlp/sgd")) == [1e-4, 3e-4, 1e-3, 3e-3]
    with Repository.open("sqlite:///edge.db", read_only=True) as repository:
        assert repository.sessions()[0].devices == ["cpu", "cpu"]
        assert len(repository.runs()) == 4
    refused = spawn("run", "edge.yaml", "--workers", "2", "--devices", "cuda:0", "--set", fixed, cwd=workdir)
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1


@pytest.mark.cold
def test_a_terminal_gets_bars_and_the_time_left(study_file: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    command = [sys.executable, "-m", "kftune", "run", "study.yaml", "--set", "trials=1", "--set", "repeats=1"]
    environment = {key: value for key, value in os.environ.items() if key not in {"NO_COLOR", "COLUMNS"}}
    with WarmPopen(
        command,
        cwd=study_file.parent,
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        env=environment | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"},
    ) as process:
        os.close(theirs)
        drawn = b""
        while chunk := _read(ours):
            drawn += chunk
    os.close(ours)
    text = drawn.decode()
    assert process.returncode == 0, text
    assert "━" in text
    assert "1/1 runs" in text
    assert " left" in text
    assert "digits_mlp, kfac: best 1 of 1 trial" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is back


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux says so when the other end is closed
        return b""


def test_the_command_to_go_on_with_names_no_password(
    workdir: Path, kftune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(sitting: Sitting, *, dry_run: bool) -> int:
        print(sitting.again)
        return 0

    monkeypatch.setattr(Sitting, "search", search)
    (workdir / "small.yaml").write_text(STUDY)
    out = kftune("run", "small.yaml", "--storage", "postgresql://me:secret@host/db").out
    assert out.strip() == "kftune run small.yaml --storage 'postgresql://me:***@host/db'"
