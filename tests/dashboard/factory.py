"""Databases that look like those of real studies, made in a moment: ``python -m tests.dashboard.factory FILE.db``.

Losses come from a formula (a bowl over the hyperparameters, a power law over time) with noise; every number goes
through the repository as a runner's would.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import optuna

from kftune.objective import run_objective
from kftune.results import Outcome, RunResult
from kftune.storage.repository import Repository, RunRecord, SessionRecord, StudyRecord
from tests.dashboard.simulation import OPTIMIZERS, Made, distance, draw, make_run, resolved, untrained_loss

STARTED_AT = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)


def make_database(
    url: str,
    *,
    name: str = "thesis_cpu",
    problems: Sequence[str] = ("mnist_autoencoder", "fashion_mnist_mlp"),
    optimizers: Mapping[str, Made] = OPTIMIZERS,
    n_trials: int = 24,
    n_made: int | None = None,
    n_startup: int = 8,
    repeats: int = 2,
    budget_seconds: float = 60.0,
    all_fail: bool = False,
    n_confirm: int = 0,
    message: str = "",
    choices: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Make one study file's results.

    Args:
        url: of the database.
        name: of the study file.
        problems: labels; those with "autoencoder" in them have no accuracy.
        optimizers: label → behaviour.
        n_trials: asked for, per study.
        n_made: trials made, per study (all if None); one more is left running if fewer.
        n_startup: random ones among them.
        repeats: runs per trial.
        budget_seconds: of every run.
        all_fail: let every run diverge.
        n_confirm: fresh seeds on which the best two trials of every study are trained again.
        message: what the last run of every study said when it crashed.
        choices: of a categorical hyperparameter that every optimizer has then, ``strange``.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    if choices:
        strange = optuna.distributions.CategoricalDistribution(tuple(choices))
        optimizers = {
            label: replace(made, dimensions=dict(made.dimensions) | {"strange": strange})
            for label, made in optimizers.items()
        }
    records = study_records(
        name,
        problems,
        optimizers,
        n_trials=n_trials,
        n_startup=n_startup,
        repeats=repeats,
        budget_seconds=budget_seconds,
        seed=seed,
    )
    with Repository.open(url) as repository:
        repository.register(records)
        session_id = begin_session(repository, name)
        studies = {
            record.study: optuna.load_study(study_name=record.study, storage=repository.optuna_storage)
            for record in records
        }
        busy = 0.0
        for number in range(n_trials if n_made is None else n_made):
            for record in records:
                busy += _add_trial(
                    repository, studies[record.study], record, optimizers[record.optimizer], session_id,
                    number=number, budget_seconds=budget_seconds, all_fail=all_fail, rng=rng, busy=busy,
                )  # fmt: skip
        if message:
            for record in records:
                _crash(repository, record, session_id, n_trials, message)
        if n_confirm:
            for record in records:
                _confirm(repository, studies[record.study], record, optimizers[record.optimizer], session_id,
                         n_seeds=n_confirm, budget_seconds=budget_seconds, rng=rng)  # fmt: skip
        if n_made is not None and n_made < n_trials:
            for study in studies.values():
                study.ask()
        else:
            ended_at = STARTED_AT + timedelta(seconds=busy * 1.05)
            repository.save_session(session_id, ledger=_ledger(busy), ended_at=ended_at)


def grow(url: str, *, optimizers: Mapping[str, Made] = OPTIMIZERS, seed: int = 1) -> None:
    """Add one trial to every study, as a runner that is at work does."""
    rng = np.random.default_rng(seed)
    with Repository.open(url) as repository:
        for record in repository.studies():
            study = optuna.load_study(study_name=record.study, storage=repository.optuna_storage)
            _add_trial(
                repository, study, record, optimizers[record.optimizer], session_id=1,
                number=len(study.get_trials(deepcopy=False)), budget_seconds=60.0, all_fail=False, rng=rng, busy=0.0,
            )  # fmt: skip


def study_records(
    name: str,
    problems: Sequence[str],
    optimizers: Mapping[str, Made],
    *,
    n_trials: int,
    n_startup: int,
    repeats: int,
    budget_seconds: float = 60.0,
    seed: int = 0,
) -> list[StudyRecord]:
    """The studies of one file."""
    config = {
        "name": name,
        "problems": [{"name": problem, "label": None, "args": {}} for problem in problems],
        "optimizers": [{"name": label, "fixed": dict(made.fixed)} for label, made in optimizers.items()],
        "budget": {"seconds": budget_seconds, "tolerance": 0.1},
        "trials": n_trials,
        "repeats": repeats,
        "startup_trials": n_startup,
        "sampler": {"name": "gpyopt"},
        "objective": "test_loss",
        "seed": seed,
        "devices": "auto",
    }
    return [
        StudyRecord(
            study=f"{name}/{problem}/{label}",
            file_name=name,
            problem=problem,
            optimizer=label,
            identity={},
            config=config,
            space={"dimensions": _box(made.dimensions), "fixed": dict(made.fixed)},
            n_trials=n_trials,
        )
        for problem in problems
        for label, made in optimizers.items()
    ]


def _box(dimensions: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions as :meth:`kftune.space.Space.to_dict` gives them, from what the sampler sees of them."""
    box: dict[str, Any] = {}
    for sampled, distribution in dimensions.items():
        if isinstance(distribution, optuna.distributions.CategoricalDistribution):
            box[sampled] = {"kind": "categorical", "choices": list(distribution.choices)}
            continue
        whole = isinstance(distribution, optuna.distributions.IntDistribution)
        low, high = distribution.low, distribution.high
        plain = {"kind": "int" if whole else "float", "low": low, "high": high, "log": distribution.log}
        if "/" in sampled:
            name, other = sampled.split("/")
            box[name] = plain | {"relative_to": other}
        elif sampled.startswith("1-"):
            box[sampled.removeprefix("1-")] = plain | {"low": 1 - high, "high": 1 - low, "complement": True}
        else:
            box[sampled] = plain
    return box


def begin_session(repository: Repository, name: str) -> int:
    record = SessionRecord(
        id=None,
        file_name=name,
        started_at=STARTED_AT,
        ended_at=None,
        host="node17",
        devices=["cpu"],
        versions={"kftune": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "optuna": "5.0.0", "GPyOpt": "1.2.6"},
        command=f"kftune run studies/{name}.yaml",
        ledger=_ledger(0.0),
    )
    return repository.begin_session(record)


def _ledger(busy: float) -> dict[str, float]:
    return {
        "wall": busy * 1.05, "asking": busy * 0.03, "telling": busy * 0.002, "storing": busy * 0.003,
        "worker_start": 3.2, "busy": busy, "slots": 1.0,
    }  # fmt: skip


def _add_trial(
    repository: Repository,
    study: optuna.Study,
    record: StudyRecord,
    made: Made,
    session_id: int,
    *,
    number: int,
    budget_seconds: float,
    all_fail: bool,
    rng: np.random.Generator,
    busy: float,
) -> float:
    """Make one trial and its runs; returns their seconds."""
    config = record.config
    is_startup = number < config["startup_trials"]
    sampled = {name: draw(distribution, is_startup, rng) for name, distribution in made.dimensions.items()}
    badness = sum(distance(distribution, sampled[name]) for name, distribution in made.dimensions.items())
    values: list[float | None] = []
    seconds = 0.0
    for repeat in range(config["repeats"]):
        result = make_run(
            record, made, badness, int(sampled["batch_size"]), budget_seconds=budget_seconds, all_fail=all_fail, rng=rng
        )
        wall = result.train_seconds + result.evaluation_seconds + result.setup_seconds + result.warmup_seconds + 0.02
        seconds += wall
        run = RunRecord(
            study=record.study,
            trial=number,
            repeat=repeat,
            seed=1000 + repeat,
            params=resolved(sampled) | dict(made.fixed),
            session_id=session_id,
            started_at=STARTED_AT + timedelta(seconds=busy + seconds),
            wall_seconds=wall,
            attempt=1,
            device="cpu",
            result=result,
        )
        repository.add_run(run, session_ledger=_ledger(busy + seconds))
        values.append(run_objective(result, "test_loss", untrained=untrained_loss(record.problem)))
    known = [value for value in values if value is not None]
    complete = len(known) == len(values)
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.FAIL,
            value=sum(known) / len(known) if complete else None,
            params=sampled,
            distributions=dict(made.dimensions),
        )
    )
    return seconds


def _crash(repository: Repository, record: StudyRecord, session_id: int, trial: int, message: str) -> None:
    """One more run, of a trial that never came to an end."""
    run = RunRecord(
        study=record.study, trial=trial - 1, repeat=99, seed=99, params={}, session_id=session_id,
        started_at=STARTED_AT, wall_seconds=1.0, attempt=1, device="cpu",
        result=RunResult(outcome=Outcome.CRASHED, message=message),
    )  # fmt: skip
    repository.add_run(run, session_ledger=_ledger(0.0))


def _confirm(
    repository: Repository,
    study: optuna.Study,
    record: StudyRecord,
    made: Made,
    session_id: int,
    *,
    n_seeds: int,
    budget_seconds: float,
    rng: np.random.Generator,
) -> None:
    """Train the best two trials again on fresh seeds."""
    usable = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    for trial in sorted(usable, key=lambda trial: trial.value or 0.0)[:2]:
        badness = sum(distance(distribution, trial.params[name]) for name, distribution in made.dimensions.items())
        for repeat in range(n_seeds):
            result = make_run(
                record, made, min(badness, 0.3), int(trial.params["batch_size"]),
                budget_seconds=budget_seconds, all_fail=False, rng=rng,
            )  # fmt: skip
            run = RunRecord(
                study=record.study,
                trial=trial.number,
                repeat=repeat,
                seed=9000 + repeat,
                params=resolved(trial.params) | dict(made.fixed),
                session_id=session_id,
                started_at=STARTED_AT + timedelta(days=1, seconds=repeat),
                wall_seconds=result.train_seconds + 1,
                attempt=1,
                device="cpu",
                result=result,
                purpose="confirm",
            )
            repository.add_run(run, session_ledger=_ledger(0.0))


if __name__ == "__main__":
    make_database(f"sqlite:///{sys.argv[1]}")
