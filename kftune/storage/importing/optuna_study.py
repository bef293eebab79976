"""An existing Optuna study, to be stored beside kftune's own."""

from __future__ import annotations

from datetime import UTC, datetime

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kftune.errors import StorageError, UnknownNameError
from kftune.objective import Objective
from kftune.results import Outcome
from kftune.storage._connecting import Database
from kftune.storage.importing.studies import ImportedRun, ImportedStudy, ImportedTrial, space_of

__all__ = ["read_optuna_study"]

_OUTCOMES = {
    TrialState.COMPLETE: Outcome.COMPLETED,
    TrialState.PRUNED: Outcome.PRUNED,
    TrialState.FAIL: Outcome.CRASHED,
}


def read_optuna_study(url: str, name: str, *, problem: str, optimizer: str, objective: Objective) -> ImportedStudy:
    """The settled trials of an Optuna study, each with one run.

    What Optuna does not know is left out: intermediate values are not placed on a clock, so no curve is made of them. A
    trial's wall time stands for its train seconds. A study that maximises an accuracy becomes one of the test error.

    Args:
        url: of its database, which is only read.
        name: of the study.
        problem: label to store it under.
        optimizer: likewise.
        objective: what its values are.

    Raises:
        StorageError: there is no such database, it has no Optuna studies, or the study's values cannot be minimised.
        UnknownNameError: it has no study of this name.
    """
    database = Database.parse(url, "read").check_file()
    try:
        storage = RDBStorage(url, skip_table_creation=True)
        names = [found.study_name for found in optuna.get_all_study_summaries(storage, include_best_trial=False)]
    except (sa.exc.SQLAlchemyError, RuntimeError, AssertionError, optuna.exceptions.StorageInternalError) as error:
        raise StorageError(f"{database.name} holds no Optuna studies that can be read ({_line(error)})") from error
    if name not in names:
        raise UnknownNameError("Optuna study", name, names)
    study = optuna.load_study(study_name=name, storage=storage)
    maximises = _maximises(study, objective)
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state in _OUTCOMES]
    return ImportedStudy(
        problem=problem,
        optimizer=optimizer,
        space=space_of(_common_distributions(trials)),
        trials=tuple(_trial(trial, maximises=maximises) for trial in trials),
    )


def _maximises(study: optuna.Study, objective: Objective) -> bool:
    if len(study.directions) != 1:
        raise StorageError(f"Optuna study {study.study_name!r} has {len(study.directions)} objectives; one is needed")
    maximises = study.direction is StudyDirection.MAXIMIZE
    if maximises and objective != "test_error":
        raise StorageError(
            f"Optuna study {study.study_name!r} maximises; if its values are accuracies (0 to 1), use --objective "
            "test_error, which takes 1 - accuracy"
        )
    return maximises


def _trial(trial: FrozenTrial, *, maximises: bool) -> ImportedTrial:
    value = None if trial.state is TrialState.FAIL else trial.value
    if value is not None and maximises:
        value = 1 - value
    seconds = trial.duration.total_seconds() if trial.duration is not None else 0.0
    run = ImportedRun(
        repeat=0,
        seed=0,
        outcome=_OUTCOMES[trial.state],
        value=value,
        train_seconds=seconds,
        updates=max(trial.intermediate_values, default=0),
    )
    return ImportedTrial(params=dict(trial.params), runs=(run,), started_at=_utc(trial.datetime_start))


def _utc(local: datetime | None) -> datetime | None:
    """Optuna stores local times without a zone."""
    return None if local is None else local.astimezone(UTC)


def _common_distributions(trials: list[FrozenTrial]) -> dict[str, BaseDistribution]:
    """The widest of each hyperparameter's boxes, which Optuna lets change from trial to trial."""
    found: dict[str, BaseDistribution] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            found[name] = _union(name, found[name], distribution) if name in found else distribution
    return found


def _union(name: str, one: BaseDistribution, other: BaseDistribution) -> BaseDistribution:
    if isinstance(one, FloatDistribution) and isinstance(other, FloatDistribution):
        return FloatDistribution(min(one.low, other.low), max(one.high, other.high), log=one.log and other.log)
    if isinstance(one, IntDistribution) and isinstance(other, IntDistribution):
        return IntDistribution(min(one.low, other.low), max(one.high, other.high), log=one.log and other.log)
    if isinstance(one, CategoricalDistribution) and isinstance(other, CategoricalDistribution):
        return CategoricalDistribution(tuple(dict.fromkeys((*one.choices, *other.choices))))
    kinds = f"{type(one).__name__} in some trials and a {type(other).__name__} in others"
    raise StorageError(f"hyperparameter {name!r} is a {kinds}")


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
