"""Real worker processes: what becomes of runs that hang, raise, die or print."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kftune.results import Outcome, RunSpec
from kftune.study.executors import Finished, LocalExecutor, Lost, Progressed, RunEvent, TimedOut
from kftune.study.executors.ledger import Ledger


def spec(problem: str, **changes: object) -> RunSpec:
    settings: dict[str, object] = {
        "problem": problem,
        "optimizer": "sgd",
        "params": {"lr": 0.1, "batch_size": 64},
        "seed": 1,
        "budget_updates": 12,
        "n_evaluations": 4,
    }
    return RunSpec(**(settings | changes))  # type: ignore[arg-type]  # a test's shorthand


RUNNER_OF_A_HANGING_RUN = """
import pathlib, sys, time
from kftune.study.executors import LocalExecutor
from kftune.study.executors.ledger import Ledger
from kftune.results import RunSpec

executor = LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1))
params = {"lr": 0.1, "batch_size": 64}
spec = RunSpec(problem="hanging_linear", optimizer="sgd", params=params, seed=1, budget_updates=12)
executor.submit(0, spec, limit_seconds=None)
executor.poll(30)
pid_file = pathlib.Path(sys.argv[1])
pid_file.with_suffix(".tmp").write_text(str(executor._workers[0].pid))
pid_file.with_suffix(".tmp").rename(pid_file)
time.sleep(600)
"""


def until_the_end(executor: LocalExecutor, *, seconds: float = 60) -> tuple[RunEvent, list[RunEvent]]:
    """The event that ends the run, and those before it."""
    deadline = time.monotonic() + seconds
    before: list[RunEvent] = []
    while time.monotonic() < deadline:
        for event in executor.poll(0.1):
            if isinstance(event, Finished | Lost | TimedOut):
                return event, before
            before.append(event)
    raise AssertionError("the run did not end")


def test_streams_its_curve_and_stays_warm() -> None:
    ledger = Ledger(n_slots=1)
    with LocalExecutor(["cpu"], threads=1, ledger=ledger) as executor:
        executor.submit(0, spec("digits_mlp"), limit_seconds=None)
        first, before = until_the_end(executor)
        assert isinstance(first, Finished)
        assert first.result.outcome is Outcome.COMPLETED, first.result.message
        assert [e.point for e in before if isinstance(e, Progressed)] == list(first.result.curve)
        assert [p.update for p in first.result.curve] == [0, 3, 6, 9, 12]
        started = ledger.to_dict()["worker_start"]
        assert started > 0
        executor.submit(0, spec("digits_mlp"), limit_seconds=None)
        second, _ = until_the_end(executor)
        assert isinstance(second, Finished)
        assert ledger.to_dict()["worker_start"] == started
        assert [p.test_loss for p in second.result.curve] == [p.test_loss for p in first.result.curve]


@pytest.mark.usefixtures("misbehaving_problems")
def test_a_users_exception_is_the_runs_outcome_and_shows_their_traceback() -> None:
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        executor.submit(0, spec("raising_linear"), limit_seconds=None)
        event, _ = until_the_end(executor)
    assert isinstance(event, Finished)
    assert event.result.outcome is Outcome.CRASHED
    assert "ValueError: a mistake in the user's own model" in event.result.message
    assert "misbehaving.py" in event.result.message


@pytest.mark.usefixtures("misbehaving_problems")
def test_out_of_memory_is_the_configurations_outcome() -> None:
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        executor.submit(0, spec("greedy_linear"), limit_seconds=None)
        event, _ = until_the_end(executor)
    assert isinstance(event, Finished)
    assert event.result.outcome is Outcome.OUT_OF_MEMORY
    assert event.result.curve[0].update == 0


@pytest.mark.usefixtures("misbehaving_problems")
def test_garbage_on_standard_output_disturbs_nothing() -> None:
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        executor.submit(0, spec("printing_linear"), limit_seconds=None)
        event, _ = until_the_end(executor)
    assert isinstance(event, Finished)
    assert event.result.outcome is Outcome.COMPLETED


@pytest.mark.cold
@pytest.mark.usefixtures("misbehaving_problems")
@pytest.mark.parametrize(("problem", "name"), [("killed_linear", "SIGKILL"), ("segfaulting_linear", "SIGSEGV")])
def test_a_worker_that_dies_loses_its_run_only(problem: str, name: str) -> None:
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        executor.submit(0, spec(problem), limit_seconds=None)
        event, _ = until_the_end(executor)
        assert isinstance(event, Lost)
        assert name in event.reason
        executor.submit(0, spec("digits_mlp"), limit_seconds=None)
        event, _ = until_the_end(executor)
        assert isinstance(event, Finished)
        assert event.result.outcome is Outcome.COMPLETED


@pytest.mark.usefixtures("misbehaving_problems")
def test_a_hung_run_is_killed_at_its_limit() -> None:
    children_before = set(psutil.Process().children(recursive=True))  # a browser of other tests, say
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        executor.submit(0, spec("digits_mlp"), limit_seconds=None)
        until_the_end(executor)
        executor.submit(0, spec("hanging_linear"), limit_seconds=2.0)
        event, before = until_the_end(executor)
        assert isinstance(event, TimedOut)
        assert any(isinstance(e, Progressed) for e in before)
        assert executor.idle_slots() == [0]
    assert set(psutil.Process().children(recursive=True)) <= children_before


@pytest.mark.usefixtures("misbehaving_problems")
def test_workers_end_with_a_runner_that_is_killed(tmp_path: Path) -> None:
    """A process that starts a hanging run is killed with SIGKILL; its worker leaves too."""
    pid_file = tmp_path / "worker.pid"
    runner = subprocess.Popen([sys.executable, "-c", RUNNER_OF_A_HANGING_RUN, str(pid_file)])
    deadline = time.monotonic() + 60
    while not pid_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = psutil.Process(int(pid_file.read_text()))
    assert worker.is_running()
    runner.kill()
    runner.wait()
    psutil.wait_procs([worker], timeout=20)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
