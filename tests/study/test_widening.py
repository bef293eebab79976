"""Going on in a wider box with the trials there are."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from kftune.analysis.stored.results import load_results
from kftune.errors import UsageError
from kftune.storage.repository import Repository
from kftune.study.sessions.widening import take_over, widened
from tests.study.test_runner import config, run, runs_of

NARROW = {"name": "sgd", "space": {"lr": {"low": 1e-4, "high": 2e-4, "log": True}}}


def test_the_trials_are_taken_over_and_the_search_goes_on_in_the_wider_box(tmp_path: Path) -> None:
    old = config(tmp_path, optimizers=[NARROW, "adamw"], trials=4, pruner="median", evaluation={"points": 5})
    run(old)
    before = runs_of(old)
    new = widened(old, {("sgd", "lr"): (1e-4, 1.0)})
    assert (new.name, new.trials) == ("runner-wide", 8)
    said: list[str] = []
    with Repository.open(old.storage) as repository:
        take_over(old, new, repository=repository, say=said.append)
        take_over(old, new, repository=repository, say=said.append)  # as after a stop
        assert len(said) == 4
        for optimizer in ("sgd", "adamw"):
            ours = repository.trials(f"runner/digits_mlp/{optimizer}")
            theirs = repository.trials(f"runner-wide/digits_mlp/{optimizer}")
            assert [(t.state, t.value, t.params) for t in theirs] == [(t.state, t.value, t.params) for t in ours]
    assert run(new).outcome == "complete"
    with Repository.open(old.storage) as repository:
        moved = [run for run in repository.runs() if run.study.startswith("runner-wide") and run.trial < 4]
        trials = repository.trials("runner-wide/digits_mlp/sgd")
        sessions = repository.sessions()
    assert [(run.trial, run.repeat, run.result) for run in moved] == [(r.trial, r.repeat, r.result) for r in before]
    assert len(trials) == 8
    assert max(float(trial.params["lr"] or 0.0) for trial in trials[4:]) > 2e-4
    assert all(float(trial.params["lr"] or 0.0) <= 2e-4 for trial in trials[:4])
    assert all(session.ledger["wall"] > 0 for session in sessions)


def test_without_stored_studies_there_is_nothing_to_widen(tmp_path: Path) -> None:
    old = config(tmp_path, optimizers=[NARROW])
    with (
        Repository.open(old.storage) as repository,
        pytest.raises(UsageError, match="holds no study 'runner/digits_mlp/sgd', so there is nothing to widen"),
    ):
        take_over(old, widened(old, {("sgd", "lr"): (1e-5, 1.0)}), repository=repository, say=print)


def test_a_grid_that_has_left_its_box_is_widened_with_the_trials_outside(tmp_path: Path) -> None:
    narrow = {
        "name": "sgd",
        "space": {
            "lr": {"low": 1e-3, "high": 3e-3, "log": True},
            "weight_decay": {"low": 1e-5, "high": 3e-5, "log": True},
        },
        "fixed": {"momentum": 0.9, "batch_size": 32},
    }
    old = config(tmp_path, sampler={"name": "grid", "points": 2}, trials=40, repeats=1, optimizers=[narrow])
    run(old)
    study, wide_study = "runner/digits_mlp/sgd", "runner-wide/digits_mlp/sgd"
    with Repository.open(old.storage) as repository:
        grown = repository.trials(study)
    assert max(float(trial.params["lr"] or 0.0) for trial in grown) > 3e-3
    new = widened(old, {("sgd", "weight_decay"): (1e-6, 3e-5)})
    with Repository.open(old.storage) as repository:
        take_over(old, new, repository=repository, say=lambda text: None)
        taken = repository.trials(wide_study)
    assert [(trial.params, trial.value) for trial in taken] == [(trial.params, trial.value) for trial in grown]
    assert run(new).outcome == "complete"
    with Repository.open(old.storage) as repository:
        trials = repository.trials(wide_study)
    configurations = [tuple(f"{value:.6g}" for value in trial.params.values()) for trial in trials]
    assert len(trials) > len(grown)
    assert len(set(configurations)) == len(configurations)


def test_a_grown_grids_trial_beyond_the_new_studys_reach_keeps_its_own_box(tmp_path: Path) -> None:
    grid = {"name": "grid", "points": 2}
    optimizer = NARROW | {"fixed": {"momentum": 0.9, "batch_size": 32, "weight_decay": 0.0}}
    old = config(tmp_path, sampler=grid, trials=40, repeats=1, optimizers=[optimizer])
    run(old)
    new = widened(old, {("sgd", "lr"): (1e-5, 2e-4)})
    new = new.model_copy(update={"sampler": config(tmp_path, sampler=grid | {"extend": 0}).sampler})
    with Repository.open(old.storage) as repository:
        take_over(old, new, repository=repository, say=lambda text: None)
        grown = [trial.params["lr"] for trial in repository.trials("runner/digits_mlp/sgd")]
        assert [trial.params["lr"] for trial in repository.trials("runner-wide/digits_mlp/sgd")] == grown
    assert max(float(lr or 0.0) for lr in grown) > 2e-4
    assert run(new).outcome == "complete"
    with Repository.open(old.storage) as repository:
        all_of_them = [float(trial.params["lr"] or 0.0) for trial in repository.trials("runner-wide/digits_mlp/sgd")]
    assert sorted(all_of_them[len(grown) :]) == [1e-5, 3e-5]


def test_a_limit_on_trials_grows_with_them(tmp_path: Path) -> None:
    old = config(tmp_path, optimizers=[NARROW], trials=2, repeats=1, limit={"trials": 2, "hours": 1.0})
    run(old)
    new = widened(old, {("sgd", "lr"): (1e-4, 1.0)})
    assert (new.trials, new.limit.trials, new.limit.hours) == (4, 4, 1.0)
    with Repository.open(old.storage) as repository:
        take_over(old, new, repository=repository, say=lambda text: None)
    summary = run(new)
    assert (summary.outcome, summary.n_runs) == ("complete", 2)


def test_what_was_given_stays_given(tmp_path: Path) -> None:
    old = config(tmp_path, optimizers=[NARROW], trials=2)
    run(old)
    new = widened(old, {("sgd", "lr"): (1e-4, 1.0)})
    with Repository.open(old.storage) as repository:
        study = optuna.load_study(study_name="runner/digits_mlp/sgd", storage=repository.optuna_storage)
        study.enqueue_trial({"lr": 1.5e-4})
        study.tell(study.ask({"lr": optuna.distributions.FloatDistribution(1e-4, 2e-4, log=True)}), 1.0)
        take_over(old, new, repository=repository, say=lambda text: None)
        moved = repository.trials("runner-wide/digits_mlp/sgd")
    assert [trial.is_enqueued for trial in moved] == [False, False, True]


def test_only_draws_from_a_box_that_has_not_changed_still_count_as_random(tmp_path: Path) -> None:
    old = config(tmp_path, optimizers=[NARROW, "adamw"], trials=2, startup_trials=3, repeats=1)
    run(old)
    new = widened(old, {("sgd", "lr"): (1e-4, 1.0)})
    with Repository.open(old.storage) as repository:
        take_over(old, new, repository=repository, say=lambda text: None)
    run(new)
    with Repository.open(old.storage) as repository:
        files = {file.name: file for file in load_results(repository)}
    random = {study.record.optimizer: [t.is_startup for t in study.trials] for study in files["runner-wide"].studies}
    assert random == {"sgd": [False, False, True, False], "adamw": [True, True, True, False]}
    assert all(trial.is_startup for study in files["runner"].studies for trial in study.trials)
    widest = widened(new, {("adamw", "lr"): (1e-6, 1.0)})
    with Repository.open(old.storage) as repository:
        take_over(new, widest, repository=repository, say=lambda text: None)
        (file,) = load_results(repository, [widest.name])
    random = {study.record.optimizer: [t.is_startup for t in study.trials] for study in file.studies}
    assert random == {"sgd": [False, False, True, False], "adamw": [False] * 4}


def test_what_the_narrower_study_started_from_is_not_looked_for_again(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    run(config(tmp_path / "first", name="first", optimizers=[NARROW], trials=1, repeats=1))
    source = tmp_path / "first" / "runner.db"
    old = config(tmp_path, optimizers=[NARROW], trials=1, repeats=1, warm_start=f"{source}#first")
    run(old)
    source.unlink()
    new = widened(old, {("sgd", "lr"): (1e-4, 1.0)})
    with Repository.open(old.storage) as repository:
        take_over(old, new, repository=repository, say=lambda text: None)
    assert run(new).outcome == "complete"
    with Repository.open(old.storage) as repository:
        moved = repository.trials("runner-wide/digits_mlp/sgd")
    assert [trial.is_enqueued for trial in moved] == [True, False]
