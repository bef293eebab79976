"""Going on in a wider box with the trials there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from kftune.errors import UsageError
from kftune.storage.repository import Repository
from kftune.study.widening import take_over, widened
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
