"""Things that break under a study, in real processes: one clear line, and nothing lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from kftune.analysis.stored.frames import trials_frame
from kftune.analysis.stored.results import load_results
from kftune.analysis.tuning.best import best_configurations
from kftune.dashboard.figures.sorted_losses import SYMBOLS, plot_sorted_losses
from kftune.results import Outcome
from kftune.storage.repository import Repository, RunRecord
from kftune.study.executors._process import GoneError, WorkerProcess
from tests.processes.database import connected, count_runs
from tests.processes.warm import START_SECONDS, WarmPopen

FAULTY = '''
"""A problem whose model misbehaves in its sixth forward pass of training, in the first run only."""
import ctypes, os, pathlib, signal, sys, time
from dataclasses import replace
import torch
from kftune.problems import PROBLEMS

HERE = pathlib.Path(__file__).parent

def segfault():
    ctypes.string_at(0)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600)

def garble():
    for stream in (1, 2):
        os.write(stream, bytes(range(256)) * 40)
    for fd in os.listdir("/proc/self/fd"):
        if os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}"):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                os.write(int(fd), b"garbage" * 1000)

class Faulty(torch.nn.Linear):
    calls = 0

    def forward(self, inputs):
        if self.training:
            type(self).calls += 1
            marker = HERE / "done"
            if type(self).calls == 6 and not marker.exists():
                marker.touch()
                globals()[(HERE / "fault").read_text()]()
        return super().forward(inputs)

def load(*, device, dtype, data_dir):
    """Digits."""
    digits = PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)
    return replace(digits, make_model=lambda: Faulty(64, 10))
'''

STUDY = """
name: faults
problems: [{problem}]
optimizers: [{{name: sgd, fixed: {{momentum: 0.9, batch_size: 64}}}}]
budget: {{updates: {updates}}}
trials: {trials}
repeats: 1
sampler: random
seed: 3
threads: 1
devices: cpu
evaluation: {{points: {points}}}
storage: sqlite:///study.db
"""

SMALL_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc or RLIMIT_FSIZE as Linux has them")


def write(directory: Path, problem: str = "digits_mlp", *, trials: int = 2, updates: int = 40, points: int = 2) -> None:
    text = STUDY.format(problem=problem, trials=trials, updates=updates, points=points)
    (directory / "study.yaml").write_text(text)


def start(directory: Path, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return WarmPopen(
        [*before, sys.executable, "-m", "kftune", "run", "study.yaml", *arguments],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def runs_of(directory: Path) -> list[RunRecord]:
    with connected(directory / "study.db") as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    with Repository.open(f"sqlite:///{directory / 'study.db'}", create=False) as repository:
        return repository.runs()


def is_complete(directory: Path, trials: int) -> None:
    """Each run once, no more and no less."""
    found = Counter((run.trial, run.repeat) for run in runs_of(directory))
    assert found == {(trial, 0): 1 for trial in range(trials)}


@LINUX
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("segfault", "the worker was ended by SIGSEGV"),
        ("kill", "the worker was ended by SIGKILL"),
        ("garble", "wrote garbage into the connection to its runner"),
    ],
)
def test_a_worker_that_breaks_loses_nothing(tmp_path: Path, fault: str, said: str) -> None:
    write(tmp_path, "{target: 'faulty:load', name: faulty}")
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "fault").write_text(fault)
    code, out, err = ended(start(tmp_path))
    assert (code, err) == (0, ""), out + err
    (line,) = (line for line in out.splitlines() if "attempt 2 of 3" in line)
    assert said in line
    assert "faults/faulty/sgd, trial 0, repeat 0" in line
    is_complete(tmp_path, 2)
    assert [(run.attempt, run.result.outcome) for run in runs_of(tmp_path)] == [
        (2, Outcome.COMPLETED),
        (1, Outcome.COMPLETED),
    ]
    assert not [process for process in psutil.Process().children(recursive=True) if process.status() == "zombie"]


def test_a_hung_run_is_timed_out_and_the_study_goes_on(tmp_path: Path) -> None:
    """It does not even listen to SIGTERM."""
    write(tmp_path, "{target: 'faulty:load', name: faulty}")
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "fault").write_text("hang")
    code, out, err = ended(start(tmp_path, "--set", f"run_timeout={START_SECONDS}"))
    assert (code, err) == (0, ""), out + err
    is_complete(tmp_path, 2)
    hung, other = runs_of(tmp_path)
    assert (hung.result.outcome, hung.result.message) == (
        Outcome.TIMED_OUT,
        f"killed after {START_SECONDS} s of wall time",
    )
    assert hung.result.curve[0].update == 0
    assert other.result.outcome is Outcome.COMPLETED


@LINUX
def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """No file can grow beyond a size that the database's journal reaches after some runs."""
    write(tmp_path, trials=40, points=10)

    full = start(tmp_path, before=(sys.executable, "-c", SMALL_FILES, "400000"))
    code, out, err = ended(full)
    assert code == 2, out + err
    assert "study.db" in err
    assert len(err.strip().splitlines()) == 1
    kept = [(run.trial, run.seed, run.started_at) for run in runs_of(tmp_path)]
    assert len(kept) < 40
    code, out, err = ended(start(tmp_path, "--set", f"trials={len(kept) + 3}"))
    assert (code, err) == (0, ""), out + err
    is_complete(tmp_path, len(kept) + 3)
    assert [(run.trial, run.seed, run.started_at) for run in runs_of(tmp_path)][: len(kept)] == kept


def test_a_database_made_read_only_in_the_middle(tmp_path: Path) -> None:
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:  # root may write everything, unless it gives that up
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv as root")
        before = ("setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override")
    write(tmp_path, trials=400)
    process = start(tmp_path, before=before)
    deadline = time.monotonic() + 120
    while count_runs(tmp_path / "study.db") < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for path in tmp_path.glob("study.db*"):
        path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        time.sleep(2)
        if process.poll() is None:  # what it has open it may still write
            process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
        stopped = (code, out, err)
        refused = ended(start(tmp_path, before=before))
    finally:
        tmp_path.chmod(0o755)
        for path in tmp_path.glob("study.db*"):
            path.chmod(0o644)
    assert stopped[0] in (2, 130), stopped
    assert len(stopped[2].strip().splitlines()) <= 1, stopped
    assert refused[0] == 2, refused
    assert "study.db" in refused[2]
    assert len(refused[2].strip().splitlines()) == 1, refused
    kept = [(run.trial, run.seed, run.started_at) for run in runs_of(tmp_path)]
    code, out, err = ended(start(tmp_path, "--set", f"trials={len(kept) + 2}"))
    assert (code, err) == (0, ""), out + err
    is_complete(tmp_path, len(kept) + 2)
    assert [(run.trial, run.seed, run.started_at) for run in runs_of(tmp_path)][: len(kept)] == kept


PICKY = '''
"""A problem whose model does not take 32 examples at a time in training."""
from dataclasses import replace
from kftune.problems import PROBLEMS

def refuse(module, arguments):
    if module.training and len(arguments[0]) == 32:
        raise ValueError("32 examples are not to its taste")

def load(*, device, dtype, data_dir):
    """Digits."""
    digits = PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)

    def make_model():
        model = digits.make_model()
        model.register_forward_pre_hook(refuse)
        return model

    return replace(digits, make_model=make_model)
'''

METHOD = """{name: natural_gradient,
  fixed: {fisher: exact, fisher_examples: null, kl_clip: null, damping: 0.1, momentum: 0.0, inverses_every: 1},
  space: {lr: {low: 0.1, high: 1.0e6, log: false}, batch_size: {choices: [32, 64, 1400]}}}"""


@pytest.mark.cold
@LINUX
def test_every_failure_of_a_configuration_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch of 1400 needs a matrix of 784 MB; the others need less than 100 MB beside the 250 of a worker."""
    write(tmp_path, "{target: 'picky:load', name: picky}", trials=6, updates=2)
    (tmp_path / "picky.py").write_text(PICKY)
    monkeypatch.setenv("KFTUNE_MEMORY_LIMIT", str(900 * 2**20))
    overrides = (f"optimizers=[{METHOD}]", "sampler={name: grid, points: 2}")
    code, out, err = ended(start(tmp_path, *(word for override in overrides for word in ("--set", override))))
    assert (code, err) == (0, ""), out + err
    is_complete(tmp_path, 6)
    outcomes = {(run.params["lr"], run.params["batch_size"]): run.result.outcome for run in runs_of(tmp_path)}
    assert outcomes == {
        (lr, size): {32: Outcome.CRASHED, 1400: Outcome.OUT_OF_MEMORY}.get(size, trained)
        for lr, trained in ((0.1, Outcome.COMPLETED), (1e6, Outcome.DIVERGED))
        for size in (32, 64, 1400)
    }
    messages = {run.result.outcome: run.result.message for run in runs_of(tmp_path)}
    assert "ValueError: 32 examples are not to its taste" in messages[Outcome.CRASHED]
    assert re.search("not finite|is nan|is inf", messages[Outcome.DIVERGED])
    assert "allocate" in messages[Outcome.OUT_OF_MEMORY]

    # They are all in the sorted losses: the good ones, those at the loss before training, those without a value.
    with Repository.open(f"sqlite:///{tmp_path / 'study.db'}", read_only=True) as repository:
        (results,) = load_results(repository)
    figure = plot_sorted_losses(results, "picky")
    assert figure is not None
    (line,) = figure.data
    untrained = next(iter(results.untrained.values()))
    assert line.y[0] < untrained
    assert list(line.y[1:]) == pytest.approx([untrained] * 5)
    best_symbol, *symbols = [symbol.removesuffix("-open") for symbol in line.marker.symbol]
    assert best_symbol == SYMBOLS[None]
    assert Counter(symbols) == {
        SYMBOLS[Outcome.CRASHED]: 2,
        SYMBOLS[Outcome.DIVERGED]: 1,
        SYMBOLS[Outcome.OUT_OF_MEMORY]: 2,
    }
    table = trials_frame([results])
    assert Counter(table["failure"].dropna()) == {"crashed": 2, "diverged": 1, "out_of_memory": 2}
    (best,) = best_configurations([results])
    (configuration,) = best.configurations
    assert (configuration.params["lr"], configuration.params["batch_size"]) == (0.1, 64)
    assert best.n_finished == 6


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage" * 1000,  # read as a length of 1.7 GB
        b"\x00\x00\x00\x07garbage",  # a message, but no pickle
        b"\x00\x00\x00\x05\x80\x04K\x01.",  # a pickle, but no message
        b"\x00\x00\x10\x00too short",
        b"\x00",
    ],
)
def test_what_is_no_message_ends_the_worker_and_not_the_runner(garbage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kftune.study.executors._process._MESSAGE_SECONDS", 1)
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket, "socketpair", lambda: (ours, theirs))
    monkeypatch.setattr(sys, "executable", "/bin/true")
    kept = theirs.dup()
    worker = WorkerProcess(threads=1)
    assert isinstance(worker.connection, Connection)
    kept.sendall(garbage)
    with pytest.raises(GoneError, match="garbage into the connection"):
        worker.receive()
    kept.close()
    assert worker.stop() == "the worker exited with code 0"
