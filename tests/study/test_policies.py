"""What cuts a study short, makes runs again, or tells it where to begin: on real databases and real workers."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from kftune.errors import UnknownNameError
from kftune.objective import run_objective
from kftune.results import Calibration, Outcome
from kftune.storage.repository import Repository, RunRecord
from kftune.study.config import StudyConfig, config_from_dict
from kftune.study.executors import Finished, LocalExecutor, RunEvent
from kftune.study.sessions.calibrating import MachineSpeed, threads_notice
from kftune.study.sessions.pruning import make_pruner
from tests.storage.builders import session_record
from tests.study.test_runner import Recorder, config, run, runs_of


def first_values(runs: list[RunRecord]) -> dict[int, float]:
    values = {run.trial: run_objective(run.result, "test_loss") for run in runs if run.repeat == 0}
    return {trial: value for trial, value in values.items() if value is not None}


def states_of(study: Any) -> dict[int, str]:
    with Repository.open(study.storage, create=False) as repository:
        return {trial.number: trial.state for trial in repository.trials(f"{study.name}/digits_mlp/sgd")}


def test_hopeless_trials_are_not_repeated(tmp_path: Path) -> None:
    study = config(tmp_path, optimizers=["sgd"], trials=8, racing=True, sampler="random")
    assert run(study).outcome == "complete"
    runs = runs_of(study)
    firsts = first_values(runs)
    assert sorted(firsts) == list(range(8))
    repeated = {run.trial for run in runs if run.repeat == 1}
    expected = {
        trial
        for trial in range(8)
        if trial < study.startup_trials or firsts[trial] <= np.median([firsts[other] for other in range(trial)])
    }
    assert repeated == expected
    assert repeated != set(range(8))
    with Repository.open(study.storage) as repository:
        for trial in repository.trials("runner/digits_mlp/sgd"):
            assert trial.state == "complete"
            values = [run_objective(r.result, "test_loss") or 0.0 for r in runs if r.trial == trial.number]
            assert trial.value == pytest.approx(sum(values) / len(values))


def test_racing_leaves_the_progress_at_its_end(tmp_path: Path) -> None:
    class Counter(Recorder):
        skipped = 0

        def runs_skipped(self, study: str, n: int) -> None:
            self.skipped += n

    counter = Counter()
    study = config(tmp_path, optimizers=["sgd"], trials=8, racing={"quantile": 0.5}, sampler="random")
    run(study, counter)
    assert counter.totals[0].n_runs == 16
    assert len(counter.runs) + counter.skipped == 16
    assert len(counter.trials) == 8


@pytest.mark.parametrize("pruner", ["median", "successive_halving", "hyperband"])
def test_runs_that_fall_behind_are_stopped(tmp_path: Path, pruner: str) -> None:
    study = config(tmp_path, optimizers=["sgd"], trials=8, pruner=pruner, sampler="random", evaluation={"points": 10})
    recorder = Recorder()
    assert run(study, recorder).outcome == "complete"
    runs = runs_of(study)
    pruned = [run for run in runs if run.result.outcome is Outcome.PRUNED]
    assert pruned
    states = states_of(study)
    for stopped in pruned:
        assert 0 < stopped.result.updates < 20
        assert stopped.result.curve[-1].update == stopped.result.updates
        assert states[stopped.trial] == "pruned"
        assert [run.repeat for run in runs if run.trial == stopped.trial] == [0]
    whole = {run.trial for run in runs} - {run.trial for run in pruned}
    assert all(sum(run.trial == trial for run in runs) == 2 for trial in whole)
    with Repository.open(study.storage) as repository:
        values = {trial.number: trial.value for trial in repository.trials("runner/digits_mlp/sgd")}
    for stopped in pruned:
        assert values[stopped.trial] == pytest.approx(run_objective(stopped.result, "test_loss"))


def test_the_median_pruner_stops_what_is_worse_than_the_median_of_those_before(tmp_path: Path) -> None:
    study = config(tmp_path, optimizers=["sgd"], trials=7, pruner="median", sampler="random", evaluation={"points": 4})
    run(study)
    firsts = {run.trial: run.result for run in runs_of(study) if run.repeat == 0}
    best_so_far = {  # by trial and step: the pruner compares the best value up to a step
        trial: np.minimum.accumulate([point.test_loss for point in result.curve[1:]])
        for trial, result in firsts.items()
    }
    for trial, result in firsts.items():
        whole = [other for other in range(trial) if firsts[other].outcome is Outcome.COMPLETED]
        if len(whole) < study.startup_trials:
            assert result.outcome is Outcome.COMPLETED
            continue
        behind = [
            best_so_far[trial][step] > np.median([firsts[other].curve[step + 1].test_loss for other in whole])
            for step in range(min(3, len(best_so_far[trial])))
        ]
        assert any(behind) == (result.outcome is Outcome.PRUNED)


def test_a_judged_study_repeats_itself(tmp_path: Path) -> None:
    outcomes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        study = config(tmp_path / name, pruner="median", racing=True, trials=6, evaluation={"points": 5})
        run(study)
        outcomes.append([(r.study, r.trial, r.repeat, r.seed, r.params, r.result.outcome) for r in runs_of(study)])
    assert outcomes[0] == outcomes[1]


def test_no_pruner_prunes_nothing(tmp_path: Path) -> None:
    assert isinstance(make_pruner(config(tmp_path)), optuna.pruners.NopPruner)


def test_a_limit_on_trials_holds_over_all_studies_and_sessions(tmp_path: Path) -> None:
    study = config(tmp_path, limit={"trials": 3})
    summary = run(study)
    assert (summary.outcome, summary.n_runs) == ("limited", 6)
    assert summary.message.startswith("limit.trials: 3")
    assert run(study).n_runs == 0
    assert [(r.study[-3:], r.trial) for r in runs_of(study)][::2] == [("sgd", 0), ("sgd", 1), ("amw", 0)]
    assert run(config(tmp_path, limit={"trials": 6})).outcome == "complete"


def test_a_limit_on_hours_counts_what_earlier_sessions_spent(tmp_path: Path) -> None:
    study = config(tmp_path)
    run(config(tmp_path, trials=1))
    with Repository.open(study.storage) as repository:
        spent = sum(session.ledger["wall"] for session in repository.sessions())
    assert spent > 0
    summary = run(config(tmp_path, limit={"hours": spent / 3600}))
    assert (summary.outcome, summary.n_runs) == ("limited", 0)
    assert run(config(tmp_path, limit={"hours": 1.0})).outcome == "complete"


def test_the_best_of_earlier_studies_is_tried_first(tmp_path: Path) -> None:
    earlier = config(tmp_path, name="earlier", trials=4, sampler="random")
    run(earlier)
    with Repository.open(earlier.storage) as repository:
        best = {
            name: min(repository.trials(f"earlier/digits_mlp/{name}"), key=lambda t: t.value).params
            for name in ("sgd", "adamw")
        }
    later = config(tmp_path, name="later", trials=3, warm_start="earlier", seed=1)
    assert run(later).outcome == "complete"
    with Repository.open(later.storage) as repository:
        for name in ("sgd", "adamw"):
            trials = repository.trials(f"later/digits_mlp/{name}")
            assert [trial.state for trial in trials] == ["complete"] * 3
            assert trials[0].params == best[name]
            assert trials[1].params != best[name]
    assert run(later).outcome == "already_complete"


def test_a_warm_start_from_another_database_survives_a_stop(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    old = config(tmp_path / "old", name="old", optimizers=["sgd"], trials=4, sampler="random")
    run(old)
    source = {"from": f"{tmp_path / 'old' / 'runner.db'}#old/digits_mlp/sgd", "top": 2}
    new = config(tmp_path, optimizers=["sgd"], trials=4, warm_start=[source], seed=3, limit={"trials": 1})
    assert run(new).outcome == "limited"
    assert states_of(new) == {0: "complete", 1: "waiting"}
    assert run(new.model_copy(update={"limit": config(tmp_path).limit})).outcome == "complete"
    with Repository.open(old.storage) as repository:
        trials = repository.trials("old/digits_mlp/sgd")
    with Repository.open(new.storage) as repository:
        taken = [trial.params for trial in repository.trials("runner/digits_mlp/sgd")[:2]]
    assert taken == [trial.params for trial in sorted(trials, key=lambda t: t.value or 0.0)[:2]]
    assert len(states_of(new)) == 4


def test_a_configuration_outside_the_box_is_left_out_and_named(tmp_path: Path) -> None:
    run(config(tmp_path, name="earlier", optimizers=["sgd"], trials=2))
    narrow = {"name": "sgd", "space": {"lr": {"low": 1e-9, "high": 2e-9, "log": True}}}
    recorder = Recorder()
    run(config(tmp_path, name="later", optimizers=[narrow], trials=1, warm_start=["earlier"]), recorder)
    (message,) = recorder.messages
    assert "earlier/digits_mlp/sgd, trial" in message
    assert "is outside the search space" in message


def test_an_unknown_source_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run(config(tmp_path, name="earlier", trials=1))
    study = config(tmp_path, name="later", warm_start=["earlyer"])
    with pytest.raises(UnknownNameError, match="unknown study to start from 'earlyer'; did you mean 'earlier'"):
        run(study)
    with Repository.open(study.storage) as repository:
        assert repository.file_names() == ["earlier"]


class _Disturbed(LocalExecutor):
    """Says of the n-th finished run that the machine was slow while it ran; the worker and its runs are real."""

    slow = (4,)
    n_finished = 0

    def poll(self, timeout_seconds: float) -> list[RunEvent]:
        events: list[RunEvent] = []
        for event in super().poll(timeout_seconds):
            if isinstance(event, Finished):
                type(self).n_finished += 1
                seconds = 2.0 if self.n_finished in self.slow else 1.0
                calibration = Calibration(train_seconds=(0.0, 0.1), seconds=(seconds, seconds))
                result = replace(event.result, calibration=calibration)
                events.append(Finished(event.slot, result, event.wall_seconds))
            else:
                events.append(event)
        return events


def test_a_disturbed_run_is_made_again_later_and_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = type("Executor", (_Disturbed,), {"n_finished": 0})
    monkeypatch.setattr("kftune.study.executors.LocalExecutor", executor)
    recorder = Recorder()
    study = config(tmp_path, budget={"seconds": 0.05}, optimizers=["sgd"], trials=4, repeats=1)
    assert run(study, recorder).outcome == "complete"
    assert recorder.messages == [
        "runner/digits_mlp/sgd, trial 3, repeat 0: the machine was 2.00 times slower than usual; it will be run again"
    ]
    with Repository.open(study.storage) as repository:
        (discarded,) = repository.runs(superseded=True)
        assert (discarded.trial, discarded.attempt) == (3, 1)
        assert discarded.result.calibration is not None
        assert discarded.result.calibration.slowdown == pytest.approx(2.0)
        counted = repository.runs()
    assert [(run.trial, run.attempt) for run in counted] == [(0, 1), (1, 1), (2, 1), (3, 2)]


def test_a_run_that_is_disturbed_again_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = type("Executor", (_Disturbed,), {"n_finished": 0, "slow": (4, 5)})
    monkeypatch.setattr("kftune.study.executors.LocalExecutor", executor)
    study = config(tmp_path, budget={"seconds": 0.05}, optimizers=["sgd"], trials=4, repeats=1)
    assert run(study).outcome == "complete"
    with Repository.open(study.storage) as repository:
        last = repository.runs()[-1]
        assert len(repository.runs(superseded=True)) == 1
        assert MachineSpeed(study, repository=repository, threads=1).is_off(last.result)


def test_without_reruns_a_disturbed_run_is_only_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = type("Executor", (_Disturbed,), {"n_finished": 0})
    monkeypatch.setattr("kftune.study.executors.LocalExecutor", executor)
    study = config(tmp_path, budget={"seconds": 0.05, "reruns": 0}, optimizers=["sgd"], trials=4, repeats=1)
    run(study)
    with Repository.open(study.storage) as repository:
        assert repository.runs(superseded=True) == []
        speed = MachineSpeed(study, repository=repository, threads=1)
        assert [speed.is_off(run.result) for run in repository.runs()] == [False, False, False, True]


def test_a_disturbed_run_is_made_again_also_where_the_limit_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = type("Executor", (_Disturbed,), {"n_finished": 0})
    monkeypatch.setattr("kftune.study.executors.LocalExecutor", executor)
    changes = {"budget": {"seconds": 0.05}, "optimizers": ["sgd"], "trials": 6, "repeats": 1}
    study = config(tmp_path, limit={"trials": 4}, **changes)
    summary = run(study)
    assert (summary.outcome, summary.n_runs) == ("limited", 4)
    assert states_of(study) == dict.fromkeys(range(4), "complete")
    assert [(run.trial, run.attempt) for run in runs_of(study)] == [(0, 1), (1, 1), (2, 1), (3, 2)]


SLOWED = '''
"""Digits; the machine is slow during one run: when the data are loaded for the fifth time in a process."""
from kftune.problems import PROBLEMS
from kftune.training.loop.calibration import SpeedGauge

work, n_loaded = SpeedGauge._work, 0

def load(*, device, dtype, data_dir):
    """Digits."""
    global n_loaded
    n_loaded += 1
    factor = 40 if n_loaded == 5 else 1
    # Where the reference workload takes 40 times its seconds, it is done 40 times.
    SpeedGauge._work = lambda self, repetitions: work(self, factor * repetitions)
    return PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)
'''


def test_a_slow_down_during_a_run_is_seen_by_its_worker_and_the_run_is_made_again(tmp_path: Path) -> None:
    """All real but the slow-down; the tolerance is far above what else may go on on this machine, and far below it."""
    (tmp_path / "slowed.py").write_text(SLOWED)
    plain = config(tmp_path).to_dict() | {
        "problems": [{"target": "slowed:load", "name": "slowed"}],
        "optimizers": ["sgd"],
        "budget": {"seconds": 0.05, "tolerance": 9.0},
        "trials": 6,
        "repeats": 1,
        "storage": f"sqlite:///{tmp_path / 'slowed.db'}",
    }
    study = config_from_dict(plain, "test", directory=tmp_path)
    recorder = Recorder()
    assert run(study, recorder).outcome == "complete"
    with Repository.open(study.storage) as repository:
        (discarded,) = repository.runs(superseded=True)
    assert discarded.result.calibration is not None
    assert (discarded.result.calibration.slowdown or 0.0) > 10
    assert [(run.trial, run.attempt) for run in runs_of(study)] == [
        (trial, 2 if trial == discarded.trial else 1) for trial in range(6)
    ]
    (message,) = recorder.messages
    assert message.startswith(f"runner/slowed/sgd, trial {discarded.trial}, repeat 0: the machine was ")
    assert message.endswith(" times slower than usual; it will be run again")


def test_threads_that_differ_from_those_of_the_session_before_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    study = config(tmp_path, threads="auto")
    with Repository.open(study.storage) as repository:

        def notice(*devices: str, study: StudyConfig = study) -> str | None:
            return threads_notice(study, repository=repository, devices=devices)

        assert notice("cpu") is None
        earlier = replace(session_record("runner"), host=socket.gethostname(), devices=["cpu", "cpu"])
        repository.begin_session(earlier)
        assert notice("cpu", "cpu") is None
        assert notice("cpu", study=config(tmp_path, threads=2)) is None
        assert notice("cpu") == (
            "threads: auto is 6 for each worker now, and was 3 in the session before; "
            "runs of the two are not equally fast"
        )
        repository.begin_session(replace(earlier, host="elsewhere"))  # with cores that are not known here
        assert notice("cpu") is None
