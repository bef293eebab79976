"""A database of ten thousand trials with curves, in bulk: ``python -m tests.dashboard.large FILE.db [N]``.

Rows go straight into the tables, kftune's and Optuna's own; a runner's way, one transaction a run, would take an hour.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import numpy as np
import optuna
import sqlalchemy as sa
from optuna.storages._rdb import models as optuna_models

from kftune.results import PHASES
from kftune.storage import models
from kftune.storage.repository import Repository, StudyRecord
from tests.dashboard.factory import STARTED_AT, begin_session, study_records
from tests.dashboard.simulation import OPTIMIZERS, UNTRAINED, resolved

POINTS, REPEATS, BUDGET = 21, 2, 60.0
PROBLEM = "mnist_autoencoder"
LABELS = ("sgd", "adamw", "kfac", "kfac_wide", "kfac_narrow")


def make_large(url: str, *, n_trials: int = 10_000, seed: int = 0) -> None:
    """Make ``n_trials`` trials in all, of five optimizers on one problem, two runs each, 21 points on a curve."""
    rng = np.random.default_rng(seed)
    optimizers = {label: OPTIMIZERS.get(label, OPTIMIZERS["kfac"]) for label in LABELS}
    each = n_trials // len(optimizers)
    with Repository.open(url) as repository:
        records = study_records("large", [PROBLEM], optimizers, n_trials=each, n_startup=each // 10, repeats=REPEATS)
        repository.register(records)
        session_id = begin_session(repository, "large")
        ids = {
            record.study: repository.optuna_storage.get_study_id_from_name(record.study)
            for record in repository.studies()
        }
        engine = repository._engine
        with engine.begin() as connection:
            found = connection.execute(sa.select(models.Study.study, models.Study.id))
            own_ids: Mapping[str, int] = {row.study: row.id for row in found}
        for number, record in enumerate(records):
            made = optimizers[record.optimizer]
            shares = rng.uniform(size=(each, len(made.dimensions)))
            sampled = [
                {
                    name: _value(distribution, float(share))
                    for (name, distribution), share in zip(made.dimensions.items(), row, strict=True)
                }
                for row in shares
            ]
            badness = ((shares - 0.6) ** 2).sum(axis=1)
            _insert(
                engine, record, ids[record.study], own_ids[record.study], session_id,
                first=number * each, sampled=sampled, badness=badness, dimensions=made.dimensions, rng=rng,
            )  # fmt: skip
        repository.save_session(session_id, ledger={"wall": 1.3e6, "busy": 1.2e6, "slots": 1.0}, ended_at=STARTED_AT)


def _insert(
    engine: sa.Engine,
    record: StudyRecord,
    optuna_id: int,
    study_id: int,
    session_id: int,
    *,
    first: int,
    sampled: list[dict[str, Any]],
    badness: Any,
    dimensions: Mapping[str, optuna.distributions.BaseDistribution],
    rng: np.random.Generator,
) -> None:
    """All trials of one study: Optuna's rows, the runs and their points."""
    untrained = UNTRAINED[PROBLEM]
    n = len(sampled)
    diverged = badness > rng.uniform(0.3, 0.9, size=n)
    times = np.linspace(0, 1, POINTS)
    floor = untrained * 0.07 * (1 + 8 * badness)[:, None] * rng.normal(1, 0.02, size=(n, REPEATS))
    curves = floor[..., None] + (untrained - floor)[..., None] / (1 + 40 * times) ** 0.9
    values = np.where(diverged, untrained, curves[:, :, -1].mean(axis=1))
    started = STARTED_AT.replace(tzinfo=None)
    ids = range(first + 1, first + n + 1)
    trials = [
        {
            "trial_id": i,
            "number": number,
            "study_id": optuna_id,
            "state": optuna.trial.TrialState.COMPLETE,
            "datetime_start": started + timedelta(minutes=2 * number),
            "datetime_complete": started + timedelta(minutes=2 * number + 2),
        }
        for number, i in enumerate(ids)
    ]
    finite = optuna_models.TrialValueModel.TrialValueType.FINITE
    told = [
        {"trial_id": i, "objective": 0, "value": float(v), "value_type": finite}
        for i, v in zip(ids, values, strict=True)
    ]
    params = [
        {
            "trial_id": i,
            "param_name": name,
            "param_value": distribution.to_internal_repr(row[name]),
            "distribution_json": optuna.distributions.distribution_to_json(distribution),
        }
        for i, row in zip(ids, sampled, strict=True)
        for name, distribution in dimensions.items()
    ]
    runs = list(_runs(record, study_id, session_id, first=first, sampled=sampled, diverged=diverged))
    with engine.begin() as connection:
        connection.execute(sa.insert(optuna_models.TrialModel), trials)
        connection.execute(sa.insert(optuna_models.TrialValueModel), told)
        connection.execute(sa.insert(optuna_models.TrialParamModel), params)
        connection.execute(sa.insert(models.Run), runs)
        connection.execute(sa.insert(models.Point), list(_points(first, curves, diverged)))


def _runs(
    record: StudyRecord, study_id: int, session_id: int, *, first: int, sampled: list[dict[str, Any]], diverged: Any
) -> Iterator[dict[str, Any]]:
    phases = dict.fromkeys(PHASES, BUDGET / len(PHASES))
    for number, row in enumerate(sampled):
        for repeat in range(REPEATS):
            yield {
                "id": (first + number) * REPEATS + repeat + 1, "study_id": study_id, "session_id": session_id,
                "trial": number, "repeat": repeat, "attempt": 1, "purpose": "search", "budget_factor": 1.0,
                "superseded": False, "seed": repeat, "params": resolved(row), "device": "cpu", "device_name": "a CPU",
                "started_at": STARTED_AT + timedelta(minutes=2 * number + repeat), "wall_seconds": BUDGET + 1,
                "outcome": "diverged" if diverged[number] else "completed", "message": "",
                "train_seconds": BUDGET, "overshoot_seconds": 0.01, "evaluation_seconds": 0.5, "setup_seconds": 0.4,
                "warmup_seconds": 0.1, "phase_seconds": phases, "updates": 6000, "examples": 600_000,
                "peak_memory_bytes": 7 * 10**8,
                "calibration": {"train_seconds": [0.0, BUDGET], "seconds": [0.1, 0.101], "reference": 0.1},
            }  # fmt: skip


def _points(first: int, curves: Any, diverged: Any) -> Iterator[dict[str, Any]]:
    for number, of_trial in enumerate(curves):
        n_points = 6 if diverged[number] else POINTS
        for repeat, curve in enumerate(of_trial.tolist()):
            for position in range(n_points):
                loss = 1e9 if diverged[number] and position == n_points - 1 else curve[position]
                yield {
                    "run_id": (first + number) * REPEATS + repeat + 1, "position": position,
                    "train_seconds": BUDGET * position / (POINTS - 1), "update": 300 * position,
                    "train_loss": 0.97 * loss, "test_loss": loss, "accuracy": None, "readings": None,
                }  # fmt: skip


def _value(distribution: Any, share: float) -> Any:
    low, high = distribution.low, distribution.high
    value = low * math.exp(share * math.log(high / low)) if distribution.log else low + share * (high - low)
    is_whole = isinstance(distribution, optuna.distributions.IntDistribution)
    return min(max(round(value) if is_whole else value, low), high)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("n_trials", nargs="?", type=int, default=10_000)
    arguments = parser.parse_args()
    make_large(f"sqlite:///{arguments.file}", n_trials=arguments.n_trials)
