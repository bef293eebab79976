"""The runner on real databases and real workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import optuna
import pytest

from kftune.errors import DataMissingError, StudyChangedError, StudyLockedError
from kftune.objective import run_objective
from kftune.results import CurvePoint, Outcome, RunResult
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, config_from_dict
from kftune.study.sessions.lock import sole_runner
from kftune.study.sessions.opening import preflight
from kftune.study.sessions.reporting import Reporter, RunKey, StudyTotals
from kftune.study.sessions.search import run_studies
from kftune.study.sessions.session import Interrupt, RunSummary
from kftune.study.sessions.trials import run_seed


class Recorder(Reporter):
    """Keeps the order of events."""

    def __init__(self) -> None:
        self.totals: list[StudyTotals] = []
        self.runs: list[RunKey] = []
        self.points: list[CurvePoint] = []
        self.trials: list[tuple[str, int, float | None, float | None]] = []
        self.messages: list[str] = []

    def started(self, totals: list[StudyTotals], devices: list[str]) -> None:
        self.totals = totals

    def run_finished(self, key: RunKey, result: RunResult) -> None:
        self.runs.append(key)

    def point(self, key: RunKey, point: CurvePoint) -> None:
        self.points.append(point)

    def trial_finished(self, study: str, trial: int, value: float | None, best: float | None) -> None:
        self.trials.append((study, trial, value, best))

    def message(self, text: str) -> None:
        self.messages.append(text)


def config(directory: Path, **changes: Any) -> StudyConfig:
    settings = {
        "name": "runner",
        "problems": ["digits_mlp"],
        "optimizers": ["sgd", "adamw"],
        "budget": {"updates": 20},
        "trials": 3,
        "startup_trials": 2,
        "sampler": "tpe",
        "evaluation": {"points": 2},
        "devices": "cpu",
        "threads": 1,
        "storage": f"sqlite:///{directory / 'runner.db'}",
    }
    return config_from_dict(settings | changes, "test")


def run(study: StudyConfig, reporter: Reporter | None = None, interrupt: Interrupt | None = None) -> RunSummary:
    with Repository.open(study.storage) as repository:
        return run_studies(
            study,
            repository=repository,
            devices=["cpu"],
            data_dir=Path("no-data"),
            reporter=reporter,
            interrupt=interrupt,
        )


def runs_of(study: StudyConfig) -> list[Any]:
    with Repository.open(study.storage, create=False) as repository:
        return repository.runs()


def test_studies_take_turns_and_values_are_means_over_repeats(tmp_path: Path) -> None:
    study, recorder = config(tmp_path), Recorder()
    summary = run(study, recorder)
    assert (summary.outcome, summary.n_runs) == ("complete", 12)
    assert [(key.study.split("/")[-1], key.trial, key.repeat) for key in recorder.runs] == [
        (optimizer, trial, repeat) for trial in range(3) for optimizer in ("sgd", "adamw") for repeat in range(2)
    ]
    assert [total.n_runs for total in recorder.totals] == [6, 6]
    runs = runs_of(study)
    for name, trial, value, best in recorder.trials:
        objectives = [run_objective(r.result, "test_loss") for r in runs if (r.study, r.trial) == (name, trial)]
        assert len(objectives) == 2
        assert value == pytest.approx(sum(o for o in objectives if o is not None) / 2)
        values = [v for n, t, v, _ in recorder.trials if n == name and t <= trial and v is not None]
        assert best == min(values)
    assert {run.seed for run in runs} == {run_seed(0, 0), run_seed(0, 1)}


def test_a_complete_study_does_nothing_and_more_trials_go_on(tmp_path: Path) -> None:
    run(config(tmp_path))
    before = runs_of(config(tmp_path))
    assert run(config(tmp_path)).outcome == "already_complete"
    assert run(config(tmp_path, trials=2)).outcome == "already_complete"
    assert runs_of(config(tmp_path)) == before
    summary = run(config(tmp_path, trials=4))
    assert (summary.outcome, summary.n_runs) == ("complete", 4)
    assert runs_of(config(tmp_path))[: len(before)] == before or set(map(repr, before)) <= set(
        map(repr, runs_of(config(tmp_path)))
    )


def test_same_seed_and_updates_give_the_same_trials_and_optuna_loads_them(tmp_path: Path) -> None:
    studies = []
    for name, seed in (("first", 3), ("second", 3), ("third", 4)):
        directory = tmp_path / name
        directory.mkdir()
        study = config(directory, name=name, seed=seed)
        run(study)
        loaded = optuna.load_study(study_name=f"{name}/digits_mlp/sgd", storage=study.storage)
        studies.append([(trial.number, trial.params, trial.value) for trial in loaded.trials])
    assert len(studies[0]) == 3
    assert studies[0] == studies[1]
    assert studies[0] != studies[2]


def test_a_changed_configuration_is_refused_and_named(tmp_path: Path) -> None:
    run(config(tmp_path, trials=1))
    before = runs_of(config(tmp_path))
    with pytest.raises(StudyChangedError, match=r"budget\.updates: 20\S* → 30"):
        run(config(tmp_path, budget={"updates": 30}))
    assert runs_of(config(tmp_path)) == before


def test_an_interrupt_finishes_the_run_and_resuming_equals_not_stopping(tmp_path: Path) -> None:
    whole_directory, directory = tmp_path / "whole", tmp_path / "stopped"
    whole_directory.mkdir()
    directory.mkdir()
    run(config(whole_directory))

    interrupt = Interrupt()

    class StopAfterThree(Recorder):
        def run_finished(self, key: RunKey, result: RunResult) -> None:
            super().run_finished(key, result)
            if len(self.runs) == 3:
                interrupt.request()

    summary = run(config(directory), StopAfterThree(), interrupt)
    assert (summary.outcome, summary.n_runs) == ("interrupted", 3)
    assert run(config(directory)).outcome == "complete"

    def essence(study: StudyConfig) -> set[Any]:
        return {
            (r.study, r.trial, r.repeat, r.seed, repr(r.params), r.result.curve[-1].test_loss) for r in runs_of(study)
        }

    assert essence(config(directory)) == essence(config(whole_directory))


def test_failed_configurations_are_learnt_from_at_the_untrained_loss(tmp_path: Path) -> None:
    space = {"lr": {"low": 1e19, "high": 1e20, "log": True}}
    study = config(tmp_path, optimizers=[{"name": "sgd", "space": space}], trials=2)
    recorder = Recorder()
    assert run(study, recorder).outcome == "complete"
    runs = runs_of(study)
    assert {run.result.outcome for run in runs} == {Outcome.DIVERGED}
    untrained = [r.result.curve[0].test_loss for r in runs if r.trial == 0]
    assert recorder.trials[0][2] == pytest.approx(sum(untrained) / 2)


def test_the_ledger_adds_up(tmp_path: Path) -> None:
    study = config(tmp_path, budget={"seconds": 0.2}, trials=2)
    run(study)
    with Repository.open(study.storage, create=False) as repository:
        (session,) = repository.sessions()
        runs = repository.runs()
    ledger = session.ledger
    spent = sum(
        r.result.train_seconds + r.result.evaluation_seconds + r.result.setup_seconds + r.result.warmup_seconds
        for r in runs
    )
    assert session.ended_at is not None
    parts = sum(ledger[key] for key in ("asking", "telling", "storing", "worker_start"))
    assert 0 < spent <= ledger["busy"]
    assert ledger["busy"] + parts <= ledger["wall"] * 1.001
    for r in runs:
        assert sum(r.result.phase_seconds.values()) == pytest.approx(r.result.train_seconds, rel=0.01)


def test_preflight_refuses_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match="kftune data fetch mnist"):
        preflight(config(tmp_path, problems=["mnist_autoencoder"]), data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_seeds_depend_on_the_repeat_and_the_study_alone() -> None:
    assert len({run_seed(seed, repeat) for seed in range(5) for repeat in range(5)}) == 25


def test_a_second_runner_on_the_same_database_is_refused(tmp_path: Path) -> None:
    study = config(tmp_path, trials=1)
    with Repository.open(study.storage) as repository, sole_runner(repository.path):
        with pytest.raises(StudyLockedError, match=rf"runner\.db: another kftune \(process {os.getpid()}\)"):
            run(study)
        assert repository.studies() == []
    assert run(study).outcome == "complete"
    assert not [path for path in tmp_path.iterdir() if "owner" in path.name]


def test_a_grid_ends_with_its_last_point(tmp_path: Path) -> None:
    sgd = {"name": "sgd", "space": {"lr": {"low": 0.1, "high": 1.0}}, "fixed": {"momentum": 0.5, "batch_size": 64}}
    study = config(tmp_path, optimizers=[sgd], sampler="grid", trials=50, repeats=1)
    assert run(study).n_runs == 3
    assert sorted(r.params["lr"] for r in runs_of(study)) == pytest.approx([0.1, 0.3, 1.0])
    assert run(study).outcome == "already_complete"
