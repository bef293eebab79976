"""Trials that are dropped, and what every sampler makes of it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from kftune.storage.repository import Repository
from kftune.study.samplers import SAMPLERS
from kftune.study.sessions.changing import drop_trials
from tests.study.test_runner import config, run, runs_of

STUDY = "runner/digits_mlp/sgd"
ONE = {"optimizers": [{"name": "sgd", "fixed": {"batch_size": 64, "momentum": 0.9, "weight_decay": 0.0}}]}
SHORT = ONE | {"budget": {"updates": 1}, "repeats": 1, "evaluation": {"points": 1}, "startup_trials": 2}


@pytest.mark.parametrize("sampler", SAMPLERS.names())
def test_every_sampler_fills_the_places_of_dropped_trials(tmp_path: Path, sampler: str) -> None:
    study = config(tmp_path, **SHORT, sampler=sampler, trials=5)
    run(study)
    before = {r.trial: r for r in runs_of(study)}
    with Repository.open(study.storage) as repository:
        drop_trials(repository, STUDY, [1, len(before) - 2])
    assert run(study).outcome == "complete"
    after = {r.trial: r for r in runs_of(study)}
    with Repository.open(study.storage) as repository:
        trials = repository.trials(STUDY)
    assert [trial.number for trial in trials] == sorted(before) == sorted(after)
    assert {trial.state for trial in trials} == {"complete"}
    assert not any(trial.is_enqueued for trial in trials)
    dropped = {1, len(before) - 2}
    assert {n: r.result.curve for n, r in after.items() if n not in dropped} == {
        n: r.result.curve for n, r in before.items() if n not in dropped
    }
    if sampler != "grid":
        assert after[1].params == before[1].params  # the trial's number draws it
    assert len({str(r.params) for r in after.values()}) == len(after)
    with Repository.open(study.storage) as repository:
        stored = optuna.load_study(study_name=STUDY, storage=repository.optuna_storage)
        assert [trial.params["lr"] for trial in stored.trials] == [after[n].params["lr"] for n in sorted(after)]
