"""How long a run may take, how a session says that it was cut off, and what it keeps of the command: real workers."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kftune.errors import StorageError
from kftune.results import Outcome, RunResult, RunSpec
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, config_from_dict
from kftune.study.executors import Asked, Finished, LocalExecutor, TimedOut
from kftune.study.executors.ledger import Ledger
from kftune.study.sessions.lock import sole_runner
from kftune.study.sessions.reporting import Reporter, RunKey
from kftune.study.sessions.search import run_studies
from kftune.study.sessions.session import Interrupt
from tests.study.test_executor import spec, until_the_end
from tests.study.test_runner import Recorder, config, run, runs_of

OWN = '''
"""Digits, with a model of its own."""
import time
from dataclasses import replace
import torch
from kftune.problems import PROBLEMS

class SlowToEvaluate(torch.nn.Linear):
    def forward(self, inputs):
        time.sleep(0.02 if self.training else 0.2)
        return super().forward(inputs)

class Failing(torch.nn.Linear):
    def forward(self, inputs):
        if self.training:
            raise ValueError(f"at {hex(time.time_ns())}: {time.time_ns()} values of {time.time()} are too many")
        return super().forward(inputs)

def digits(cls, **place):
    return replace(PROBLEMS.get("digits_mlp").load(**place), make_model=lambda: cls(64, 10))

def slow(*, device, dtype, data_dir):
    """Digits."""
    return digits(SlowToEvaluate, device=device, dtype=dtype, data_dir=data_dir)

def failing(*, device, dtype, data_dir):
    """Digits."""
    return digits(Failing, device=device, dtype=dtype, data_dir=data_dir)
'''


def own(directory: Path, target: str, **changes: Any) -> StudyConfig:
    (directory / "own.py").write_text(OWN)
    problem = {"target": f"own:{target}", "name": target}
    keys = {"optimizers": ["sgd"], "sampler": "random", "repeats": 1, "problems": [problem]}
    return config_from_dict(config(directory).to_dict() | keys | changes, "test", directory=directory)


def test_slow_evaluations_are_no_hang(tmp_path: Path) -> None:
    """They take 4.4 s in all, and none of them a second; 4 s of silence are allowed, once the worker is there."""
    (tmp_path / "own.py").write_text(OWN)
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        executor.submit(0, spec("digits_mlp"), limit_seconds=None)
        until_the_end(executor)
        slow = spec("own:slow", module_dir=str(tmp_path), n_evaluations=11, train_examples=100)
        executor.submit(0, slow, limit_seconds=None, silence_seconds=4.0)
        event, _ = until_the_end(executor)
    assert isinstance(event, Finished)
    assert event.result.outcome is Outcome.COMPLETED, event.result.message
    assert event.wall_seconds > 4.0


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"budget": {"seconds": 0.2}}, (None, 121.0)),
        ({"budget": {"seconds": 0.2}, "run_timeout": 60}, (60.0, None)),
        ({"budget": {"updates": 2}}, (None, None)),
    ],
)
def test_only_a_limit_that_the_study_file_sets_counts_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], limits: tuple[float | None, float | None]
) -> None:
    given = []

    class Noting(LocalExecutor):
        def submit(
            self, slot: int, spec: RunSpec, *, limit_seconds: float | None, silence_seconds: float | None = None
        ) -> None:
            given.append((limit_seconds, silence_seconds))
            super().submit(slot, spec, limit_seconds=limit_seconds, silence_seconds=silence_seconds)

    monkeypatch.setattr("kftune.study.executors.LocalExecutor", Noting)
    run(config(tmp_path, optimizers=["sgd"], trials=1, repeats=1, **changes))
    assert given == [limits]


@pytest.mark.usefixtures("misbehaving_problems")
def test_a_run_that_is_silent_is_killed() -> None:
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        executor.submit(0, spec("digits_mlp"), limit_seconds=None)
        until_the_end(executor)
        executor.submit(0, spec("hanging_linear"), limit_seconds=None, silence_seconds=3.0)
        event, _ = until_the_end(executor)
    assert isinstance(event, TimedOut)
    assert event.reason == "killed after 3 s without a word from it"


def test_a_run_that_waits_to_be_judged_is_not_silent() -> None:
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        executor.submit(0, spec("digits_mlp"), limit_seconds=None)
        until_the_end(executor)
        executor.submit(0, spec("digits_mlp", is_judged=True), limit_seconds=None, silence_seconds=3.0)
        events = executor.poll(30)
        while not isinstance(events[-1], Asked):
            events += executor.poll(30)
        waited_until = time.monotonic() + 4
        while time.monotonic() < waited_until:
            assert executor.poll(0.1) == []
        executor.judge(0, goes_on=False)
        event, _ = until_the_end(executor)
    assert isinstance(event, Finished)
    assert event.result.outcome is Outcome.PRUNED


def test_crashes_that_differ_in_their_numbers_are_the_same(tmp_path: Path) -> None:
    study = own(tmp_path, "failing", trials=6)
    summary = run(study)
    assert (summary.outcome, summary.n_runs) == ("crashed", 3)
    assert "crashed 3 times in the same way" in summary.message


def test_an_interrupt_that_leaves_a_trial_unfinished_is_said_also_at_a_limit(tmp_path: Path) -> None:
    """The second worker meets the limit while the first makes the run that decides about the trial's others."""
    interrupt = Interrupt()

    class Stopping(Reporter):
        def run_finished(self, key: RunKey, result: RunResult) -> None:
            interrupt.request()

    study = config(tmp_path, optimizers=["sgd"], trials=3, racing=True, limit={"trials": 1})
    with Repository.open(study.storage) as repository:
        summary = run_studies(
            study,
            repository=repository,
            devices=["cpu", "cpu"],
            data_dir=Path("no-data"),
            reporter=Stopping(),
            interrupt=interrupt,
        )
    assert (summary.outcome, summary.n_runs) == ("interrupted", 1)
    assert run(study).outcome == "limited"


def test_runs_that_were_never_to_be_made_are_not_still_to_do(tmp_path: Path) -> None:
    class Skipping(Recorder):
        skipped = 0

        def runs_skipped(self, study: str, n: int) -> None:
            self.skipped += n

    keys: dict[str, Any] = {"optimizers": ["sgd"], "trials": 8, "racing": True, "sampler": "random"}
    run(config(tmp_path, limit={"trials": 6}, **keys))
    n_before = len(runs_of(config(tmp_path)))
    assert n_before < 12
    recorder = Skipping()
    run(config(tmp_path, **keys), recorder)
    (total,) = recorder.totals
    assert (total.n_runs, total.n_runs_done, total.n_trials_done) == (n_before + 4, n_before, 6)
    assert total.n_runs - recorder.skipped == len(runs_of(config(tmp_path)))


def test_a_password_is_not_stored_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/kftune", "run", "a.yaml", "--storage", "postgresql://me:secret@host/db"])
    study = config(tmp_path, optimizers=["sgd"], trials=1, repeats=1)
    run(study)
    with Repository.open(study.storage) as repository:
        (session,) = repository.sessions()
    assert session.command == "kftune run a.yaml --storage 'postgresql://me:***@host/db'"


def test_users_of_a_database_server_are_told_that_nothing_keeps_runners_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, recorder = config(tmp_path, optimizers=["sgd"], trials=1, repeats=1), Recorder()
    monkeypatch.setattr(Repository, "path", None)
    run(study, recorder)
    (message,) = recorder.messages
    assert message.endswith(": see to it that no other kftune runs studies in this database now")


def test_all_who_may_write_a_database_may_take_its_lock(tmp_path: Path) -> None:
    database = tmp_path / "shared.db"
    with sole_runner(database):
        assert (tmp_path / "shared.db.lock").stat().st_mode & 0o777 == 0o666


def test_a_lock_that_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "shared.db.lock").mkdir()
    with (
        pytest.raises(StorageError, match=r"shared\.db\.lock: Is a directory; it keeps two"),
        sole_runner(tmp_path / "shared.db"),
    ):
        pass
