"""Small stored studies of which every number is known."""

from collections.abc import Sequence
from typing import Any

import optuna

from kftune.results import CurvePoint, Outcome, RunResult
from kftune.storage.repository import Repository
from tests.storage.builders import run_record, run_result

LR = optuna.distributions.FloatDistribution(1e-4, 10.0, log=True)
UNTRAINED = 2.0


def result(*losses: float, outcome: Outcome = Outcome.COMPLETED, **other: Any) -> RunResult:
    """A run that starts at ``UNTRAINED`` and is evaluated after every second and 10 updates."""
    curve = tuple(
        CurvePoint(train_seconds=float(i), update=10 * i, train_loss=loss / 2, test_loss=loss)
        for i, loss in enumerate((UNTRAINED, *losses))
    )
    return run_result(outcome=outcome, curve=curve, updates=10 * len(losses), **other)


def failed(outcome: Outcome, *losses: float) -> RunResult:
    """A run that did not get to its end; without losses it has no curve at all."""
    return result(*losses, outcome=outcome) if losses else run_result(outcome=outcome, curve=(), updates=0)


def add_trial(
    repository: Repository,
    study: str,
    number: int,
    results: Sequence[RunResult],
    *,
    value: float | None,
    session_id: int = 1,
    lr: float = 0.1,
    is_pruned: bool = False,
) -> None:
    """Store a settled trial; ``value`` None is one that Optuna was told to have failed."""
    state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
    state = optuna.trial.TrialState.PRUNED if is_pruned else state
    frozen = optuna.trial.create_trial(state=state, value=value, params={"lr": lr}, distributions={"lr": LR})
    optuna.load_study(study_name=study, storage=repository.optuna_storage).add_trial(frozen)
    for repeat, run in enumerate(results):
        params = {"lr": lr, "fisher": "mc"}
        record = run_record(session_id, number, repeat, study=study, params=params, result=run)
        repository.add_run(record, session_ledger={})


def add_confirmation(
    repository: Repository, study: str, trial: int, results: Sequence[RunResult], *, lr: float = 0.1, **other: Any
) -> None:
    """Store confirming runs of a trial, one per fresh seed."""
    params = {"lr": lr, "fisher": "mc"}
    for repeat, run in enumerate(results):
        known = {"study": study, "params": params, "result": run, "purpose": "confirm", "seed": 900 + repeat}
        repository.add_run(run_record(1, trial, repeat, **(known | other)), session_ledger={})
