"""``kill -9`` in the middle of a study, then the same command: nothing lost, nothing twice, the exact count."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kftune.storage.repository import Repository
from tests.processes.database import connected, count_runs
from tests.processes.warm import WarmPopen

STUDY = """
name: kill
problems: [digits_mlp]
optimizers: [sgd, foof]
budget: {{updates: {updates}}}
repeats: 2
trials: {trials}
startup_trials: 2
sampler: {sampler}
seed: 7
threads: 1
evaluation: {{points: 3}}
storage: sqlite:///{database}
"""

ROUNDS = int(os.environ.get("KFTUNE_KILL_ROUNDS", "4"))

RunRow = tuple[str, int, int, int, tuple[tuple[str, object], ...], float]


def write_study(directory: Path, name: str, sampler: str, trials: int = 4, updates: int = 150) -> tuple[Path, str]:
    study = directory / f"{name}.yaml"
    database = directory / f"{name}.db"
    study.write_text(STUDY.format(sampler=sampler, database=database, trials=trials, updates=updates))
    return study, f"sqlite:///{database}"


def start(study: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kftune", "run", str(study), *options]
    return WarmPopen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def finish(study: Path, *options: str) -> str:
    process = start(study, *options)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def stored(url: str) -> set[RunRow]:
    """Every run, with the last test loss: an ``updates`` budget makes it reproducible to the bit."""
    with Repository.open(url, create=False) as repository:
        runs = repository.runs()
    rows = {
        (run.study, run.trial, run.repeat, run.seed, tuple(sorted(run.params.items())), run.result.curve[-1].test_loss)
        for run in runs
    }
    assert len(rows) == len(runs)
    return rows


def kill_after(study: Path, database: Path, n_runs: int, *, workers_too: bool) -> None:
    """Start the study and kill it a moment after its ``n_runs``-th run is stored."""
    process = start(study)
    deadline = time.monotonic() + 120
    while count_runs(database) < n_runs:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.15)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    for worker in workers:
        if workers_too:
            worker.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, "a worker outlived its runner"


@pytest.mark.parametrize("sampler", ["tpe", "gpyopt"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, sampler: str) -> None:
    whole, whole_url = write_study(tmp_path, "whole", sampler)
    finish(whole)
    reference = {(row[0].replace("kill/", "", 1), *row[1:]) for row in stored(whole_url)}
    assert len(reference) == 2 * 4 * 2

    study, url = write_study(tmp_path, "killed", sampler)
    database = tmp_path / "killed.db"
    kill_after(study, database, 3, workers_too=True)
    survivors = stored(url)
    assert 3 <= len(survivors) < 16
    kill_after(study, database, 9, workers_too=False)
    assert survivors <= stored(url)
    output = finish(study)

    assert survivors <= stored(url)
    assert {(row[0].replace("kill/", "", 1), *row[1:]) for row in stored(url)} == reference
    with Repository.open(url, create=False) as repository:
        for name in ("kill/digits_mlp/sgd", "kill/digits_mlp/foof"):
            assert [trial.state for trial in repository.trials(name)] == ["complete"] * 4
    with connected(database) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)

    again = finish(study)
    assert "complete" in again
    assert again != output


def kill_something(study: Path, options: tuple[str, ...], rng: random.Random, *, seconds: float) -> str:
    """Start the study, and at a random moment kill its runner, a worker, or all of them; returns what.

    Args:
        study: the study file.
        options: of the command.
        rng: decides when and what.
        seconds: that the whole study takes.
    """
    process = start(study, *options)
    time.sleep(rng.uniform(0.1, 0.8) * seconds)
    if process.poll() is not None:
        process.communicate()
        return "nothing"
    what = rng.choice(("runner", "worker", "both"))
    workers = psutil.Process(process.pid).children(recursive=True)
    for worker in workers[:1] if what == "worker" else workers if what == "both" else []:
        worker.kill()
    if what == "worker":
        time.sleep(rng.uniform(0.0, 1.0))  # the runner goes on for a while
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive, "a worker outlived its runner"
    return what


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("sampler", "options"), [("tpe", ()), ("gpyopt", ()), ("random", ("--workers", "2"))], ids=["tpe", "gpyopt", "two"]
)
def test_kills_at_random_moments_change_nothing(tmp_path: Path, sampler: str, options: tuple[str, ...]) -> None:
    def runs_of(url: str) -> set[tuple[object, ...]]:
        return {(row[0].split("/", 1)[1], *row[1:5]) for row in stored(url)}

    whole, whole_url = write_study(tmp_path, "whole", sampler, trials=4, updates=120)
    began = time.monotonic()
    finish(whole, *options)
    seconds = time.monotonic() - began
    study, url = write_study(tmp_path, "killed", sampler, trials=4, updates=120)
    rng = random.Random(f"{ROUNDS} {sampler}")
    killed: list[str] = []
    before: set[tuple[object, ...]] = set()
    for _ in range(ROUNDS):
        killed.append(kill_something(study, options, rng, seconds=seconds))
        if (tmp_path / "killed.db").exists() and count_runs(tmp_path / "killed.db"):
            assert before <= runs_of(url)
            before = runs_of(url)
    finish(study, *options)
    assert runs_of(url) == runs_of(whole_url), killed
    with Repository.open(url, create=False) as repository:
        for name in ("kill/digits_mlp/sgd", "kill/digits_mlp/foof"):
            assert [trial.state for trial in repository.trials(name)] == ["complete"] * 4
    with connected(tmp_path / "killed.db") as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)


@pytest.mark.cold
def test_a_worker_killed_alone_loses_no_run(tmp_path: Path) -> None:
    study, url = write_study(tmp_path, "worker", "random", trials=1, updates=1500)  # a second or more
    process = start(study)
    deadline = time.monotonic() + 120
    while count_runs(tmp_path / "worker.db") < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (worker,) = psutil.Process(process.pid).children(recursive=True)
    used = worker.cpu_times().user
    while worker.cpu_times().user < used + 0.3:  # only a run keeps it busy: the third one is under way then
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.kill()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "SIGKILL" in output
    assert "attempt 2 of 3" in output
    assert len(stored(url)) == 2 * 2
    with Repository.open(url, create=False) as repository:
        assert sorted(run.attempt for run in repository.runs())[-2:] == [1, 2]
