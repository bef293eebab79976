"""A database of finished studies of real problems and optimizers, made without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from kftune.optim import OPTIMIZERS
from kftune.results import Outcome
from kftune.storage.repository import Repository
from tests.analysis.builders import failed, result
from tests.storage.builders import run_record, session_record, study_record

LR = optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)
PROBLEMS = ("digits_mlp", "digits_autoencoder")
FIXED: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "batch_size": 64},
    "kfac": {"damping": 0.01, "kl_clip": None, "fisher": "mc", "batch_size": 64, "effective_batch_size": 128},
}
CONFIG = {
    "name": "made",
    "repeats": 2,
    "startup_trials": 3,
    "objective": "test_loss",
    "budget": {"seconds": 1.0, "tolerance": 0.25},
}


def make(path: Path, *, confirmed: bool = True, name: str = "made", objective: str = "test_loss") -> None:
    """Two problems and two optimizers of five trials each; SGD's best learning rates crowd at the upper edge.

    On ``digits_mlp`` trial 0 is the best; on ``digits_autoencoder`` the same configuration is trial 4 and the worst.
    Confirming runs, on the first problem only, are of trial 0. ``name`` is the study file's.
    """
    with Repository.open(f"sqlite:///{path}") as repository:
        records = [
            study_record(
                name,
                problem,
                optimizer,
                config=CONFIG | {"name": name, "objective": objective},
                n_trials=5,
                identity={"problem": {"name": problem, "args": {}}, "optimizer": optimizer},
                space={
                    "dimensions": {"lr": {"kind": "float", "low": 1e-4, "high": 1.0, "log": True}},
                    "fixed": FIXED[optimizer],
                },
            )
            for problem in PROBLEMS
            for optimizer in FIXED
        ]
        assert set(FIXED) <= set(OPTIMIZERS.names())
        repository.register(records)
        repository.begin_session(session_record(name))
        for record in records:
            _fill(repository, record.study, record.optimizer, first=record.problem == PROBLEMS[0])
        if confirmed:
            for optimizer, losses in {"sgd": (0.61, 0.72, 0.69), "kfac": (0.31, 0.42, 0.38)}.items():
                _confirm(repository, f"{name}/digits_mlp/{optimizer}", optimizer, losses)


def _rate(optimizer: str, number: int) -> float:
    return (0.9, 0.95, 0.99, 0.01, 0.001)[number] if optimizer == "sgd" else (0.05, 0.1, 0.02, 0.01, 0.001)[number]


def _fill(repository: Repository, study: str, optimizer: str, *, first: bool) -> None:
    stored = optuna.load_study(study_name=study, storage=repository.optuna_storage)
    for place in range(5):
        number = place if first else 4 - place
        lr, loss = _rate(optimizer, number), 0.3 + 0.1 * place + (0.3 if optimizer == "sgd" else 0)
        diverged = place == 3 and optimizer == "sgd"
        stored.add_trial(
            optuna.trial.create_trial(value=2.0 if diverged else loss, params={"lr": lr}, distributions={"lr": LR})
        )
        for repeat in range(2):
            made = failed(Outcome.DIVERGED, 1e9) if diverged else result(1.5, loss, train_seconds=1.0)
            record = run_record(1, place, repeat, study=study, params={"lr": lr} | FIXED[optimizer], result=made)
            repository.add_run(record, session_ledger={})


def _confirm(repository: Repository, study: str, optimizer: str, losses: tuple[float, ...]) -> None:
    for repeat, loss in enumerate(losses):
        params = {"lr": _rate(optimizer, 0)} | FIXED[optimizer]
        record = run_record(
            1, 0, repeat, study=study, params=params, result=result(1.5, loss), purpose="confirm", seed=900 + repeat
        )
        repository.add_run(record, session_ledger={})
