"""Results that were made elsewhere, stored beside kftune's own: whole or not at all.

An imported study is one like any other to whoever reads it, marked by ``imported`` in its configuration: it has
trials with values and runs, but no learning curves. It cannot be gone on with: there is no problem, budget or sampler
to go on with.

Optuna's trials come first, one by one, in studies that are marked as unfinished; then everything that is kftune's in
one transaction. What a kill leaves behind is an Optuna study that kftune does not know, and that the next import of
that name removes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import fmean

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage

from kftune.errors import StorageError, UsageError
from kftune.objective import Objective
from kftune.results import CurvePoint, Outcome, RunResult
from kftune.space import Categorical, Dimension, Float, Int, Space, Value
from kftune.storage._connecting import storage_errors
from kftune.storage.records import Purpose, RunRecord, SessionRecord, StudyRecord
from kftune.storage.repository import Repository

__all__ = ["ImportedRun", "ImportedStudy", "ImportedTrial", "common_objective", "space_of", "store_imported"]

_STATE, _UNFINISHED = "kftune_import", "unfinished"
_FAILED = (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT)


@dataclass(frozen=True, kw_only=True)
class ImportedRun:
    """One training made elsewhere.

    Attributes:
        repeat: from 0.
        seed: of it, or its repeat where that is unknown.
        outcome: how it ended.
        value: the objective at its end, or of a run that failed what it counts as; None: unknown. A failed run counts
            as the untrained model, so a value below that of a run that was completed is not what it counts as.
        train_seconds: 0 where unknown.
        updates: 0 where unknown.
        purpose: search or confirm.
        budget_factor: of a confirming run.
    """

    repeat: int
    seed: int
    outcome: Outcome
    value: float | None
    train_seconds: float = 0.0
    updates: int = 0
    purpose: Purpose = "search"
    budget_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ImportedTrial:
    """One configuration: hyperparameters that were varied, and its runs. Numbers are given by their order."""

    params: Mapping[str, Value]
    runs: tuple[ImportedRun, ...]
    started_at: datetime | None = None

    @property
    def is_pruned(self) -> bool:
        """Whether one of its runs was."""
        return any(run.outcome is Outcome.PRUNED for run in self._searched)

    def value(self, untrained_from: float) -> float | None:
        """The mean over its runs of the search; None if one has none; ``untrained_from`` as in :func:`_counts`."""
        values = [run.value for run in self._searched if run.value is not None and _counts(run, untrained_from)]
        return fmean(values) if values and len(values) == len(self._searched) else None

    @property
    def _searched(self) -> list[ImportedRun]:
        return [run for run in self.runs if run.purpose == "search"]


@dataclass(frozen=True, kw_only=True)
class ImportedStudy:
    """One optimizer on one problem.

    Attributes:
        problem: label.
        optimizer: label.
        space: the box that was searched, as far as it is known.
        trials: in order.
        objective: what its values are; None if its source does not say.
    """

    problem: str
    optimizer: str
    space: Space
    trials: tuple[ImportedTrial, ...]
    objective: Objective | None = None


def common_objective(studies: Sequence[ImportedStudy], asked: Objective | None) -> Objective:
    """What the values of studies are: what was asked for, what their source says, or the test loss.

    Raises:
        UsageError: their source says something else than what was asked for, or several things.
    """
    known = list(dict.fromkeys(study.objective for study in studies if study.objective is not None))
    if len(known) > 1:
        raise UsageError(f"its studies have several objectives: {', '.join(known)}; import them apart")
    if known and asked is not None and known[0] != asked:
        raise UsageError(f"--objective {asked}: its values are of {known[0]}")
    return known[0] if known else asked or "test_loss"


def _counts(run: ImportedRun, untrained_from: float) -> bool:
    """Whether a run's value is what it counts as: of a failed run if no completed one of the problem was worse."""
    if run.value is None or not math.isfinite(run.value):
        return False
    return run.outcome not in _FAILED or run.value >= untrained_from


def _untrained_from(studies: Sequence[ImportedStudy]) -> dict[str, float]:
    """Problem → its worst completed run: no untrained model is better."""
    found: dict[str, float] = {}
    for study in studies:
        runs = [run for trial in study.trials for run in trial.runs if run.outcome is Outcome.COMPLETED]
        values = [run.value for run in runs if run.value is not None and math.isfinite(run.value)]
        found[study.problem] = max([found.get(study.problem, -math.inf), *values])
    return found


def store_imported(
    repository: Repository,
    studies: Sequence[ImportedStudy],
    *,
    file_name: str,
    objective: Objective,
    source: str,
    command: str = "",
) -> list[str]:
    """Store studies made elsewhere under one study file's name; returns their full names.

    Args:
        repository: open for writing.
        studies: what to store.
        file_name: the name they get in the place of a study file's.
        objective: what their values are.
        source: where they come from, for people.
        command: what was typed.

    Raises:
        StorageError: studies of this name are stored already, by kftune or by another program; nothing is written.
    """
    if file_name in repository.file_names():
        raise StorageError(f"{repository.name} holds studies named {file_name!r} already; choose another --name")
    records = [_record(study, studies, file_name=file_name, objective=objective, source=source) for study in studies]
    session = _session(file_name, command)
    pairs = list(zip(records, studies, strict=True))
    untrained_from = _untrained_from(studies)
    with storage_errors(repository.name):
        _clear(repository, [record.study for record in records])
        made = [
            _optuna_study(repository.optuna_storage, record.study, study, untrained_from[study.problem])
            for record, study in pairs
        ]
        runs = [
            _run(
                run,
                trial,
                record.study,
                number,
                curve=_curve(run, objective, untrained_from[study.problem]),
                fixed=study.space.fixed,
            )
            for record, study in pairs
            for number, trial in enumerate(study.trials)
            for run in trial.runs
        ]
        repository.add_whole(records, replace(session, ended_at=datetime.now(UTC)), runs)
        for optuna_study in made:
            optuna_study.set_user_attr(_STATE, "whole")
    return [record.study for record in records]


def _clear(repository: Repository, names: Sequence[str]) -> None:
    """Remove what an import that was killed left of these Optuna studies.

    Raises:
        StorageError: one of them is another program's.
    """
    summaries = optuna.get_all_study_summaries(repository.optuna_storage, include_best_trial=False)
    found = {s.study_name: s for s in summaries}
    there = [found[name] for name in names if name in found]
    for summary in there:
        if summary.n_trials > 0 and summary.user_attrs.get(_STATE) != _UNFINISHED:
            raise StorageError(
                f"{repository.name} holds an Optuna study {summary.study_name!r} that kftune did not make; choose "
                "another --name"
            )
    for summary in there:
        optuna.delete_study(study_name=summary.study_name, storage=repository.optuna_storage)


def _optuna_study(storage: BaseStorage, name: str, study: ImportedStudy, untrained_from: float) -> optuna.Study:
    made = optuna.create_study(study_name=name, storage=storage, direction="minimize")
    made.set_user_attr(_STATE, _UNFINISHED)
    distributions = _distributions(study.space)
    made.add_trials([_frozen(trial, distributions, untrained_from) for trial in study.trials])
    return made


def _record(
    study: ImportedStudy, studies: Sequence[ImportedStudy], *, file_name: str, objective: Objective, source: str
) -> StudyRecord:
    n_repeats = min((len(trial.runs) for trial in study.trials), default=1)
    config = {
        "name": file_name,
        "imported": source,
        "problems": [{"name": name} for name in dict.fromkeys(each.problem for each in studies)],
        "optimizers": [{"name": name} for name in dict.fromkeys(each.optimizer for each in studies)],
        "budget": {},
        "trials": max((len(each.trials) for each in studies), default=0),
        "repeats": n_repeats,
        "startup_trials": 0,
        "objective": objective,
    }
    return StudyRecord(
        study=f"{file_name}/{study.problem}/{study.optimizer}",
        file_name=file_name,
        problem=study.problem,
        optimizer=study.optimizer,
        identity={"imported": source, "problem": {"name": study.problem, "args": {}}, "optimizer": study.optimizer},
        config=config,
        space=study.space.to_dict(),
        n_trials=len(study.trials),
    )


def _session(file_name: str, command: str) -> SessionRecord:
    return SessionRecord(
        id=None,
        file_name=file_name,
        started_at=datetime.now(UTC),
        ended_at=None,
        host="",
        devices=[],
        versions={},
        command=command,
        ledger={},
    )


def _frozen(
    trial: ImportedTrial, distributions: Mapping[str, BaseDistribution], untrained_from: float
) -> optuna.trial.FrozenTrial:
    states = optuna.trial.TrialState
    value = trial.value(untrained_from)
    state = states.PRUNED if trial.is_pruned else states.FAIL if value is None else states.COMPLETE
    params = {name: value for name, value in trial.params.items() if name in distributions}
    return optuna.trial.create_trial(
        state=state,
        value=value,
        params=params,
        distributions={name: distributions[name] for name in params},
    )


def _run(
    run: ImportedRun,
    trial: ImportedTrial,
    study: str,
    number: int,
    *,
    curve: tuple[CurvePoint, ...],
    fixed: Mapping[str, Value],
) -> RunRecord:
    return RunRecord(
        study=study,
        trial=number,
        repeat=run.repeat,
        seed=run.seed,
        params={**trial.params, **fixed},
        session_id=0,  # given when they are stored
        started_at=trial.started_at or datetime.now(UTC),
        wall_seconds=run.train_seconds,
        attempt=1,
        device="",
        result=RunResult(
            outcome=run.outcome,
            curve=curve,
            train_seconds=run.train_seconds,
            updates=run.updates,
        ),
        purpose=run.purpose,
        budget_factor=run.budget_factor,
    )


def _curve(run: ImportedRun, objective: Objective, untrained_from: float) -> tuple[CurvePoint, ...]:
    """The one thing that is known.

    What a failed run counts as stands where the untrained model does: at update 0. A value that is not what it counts
    as stands at its end if it was timed out; what it was when the run failed otherwise says nothing.
    """
    counts = _counts(run, untrained_from)
    if run.value is None or not (counts or (run.outcome is Outcome.TIMED_OUT and math.isfinite(run.value))):
        return ()
    is_untrained = counts and run.outcome in _FAILED
    point = CurvePoint(
        train_seconds=0.0 if is_untrained else run.train_seconds,
        update=0 if is_untrained else max(1, run.updates),
        train_loss=run.value if objective == "train_loss" else math.nan,
        test_loss=run.value if objective == "test_loss" else math.nan,
        accuracy=1 - run.value if objective == "test_error" else None,
    )
    return (point,)


def space_of(distributions: Mapping[str, BaseDistribution], fixed: Mapping[str, Value] | None = None) -> Space:
    """The search space of Optuna's distributions; steps are left out.

    Raises:
        StorageError: a distribution of a kind that no search space has.
    """
    return Space({name: _dimension(name, found) for name, found in distributions.items()}, dict(fixed or {}))


def _dimension(name: str, found: BaseDistribution) -> Dimension:
    if isinstance(found, CategoricalDistribution):
        return Categorical(choices=tuple(found.choices))
    if isinstance(found, IntDistribution):
        return Int(low=found.low, high=found.high, log=found.log)
    if isinstance(found, FloatDistribution):
        return Float(low=found.low, high=found.high, log=found.log)
    raise StorageError(f"hyperparameter {name!r} has a distribution that is not known here: {found!r}")


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for name, dimension in space.dimensions.items():
        if isinstance(dimension, Categorical):
            found[name] = CategoricalDistribution(dimension.choices)
        elif isinstance(dimension, Int):
            found[name] = IntDistribution(dimension.low, dimension.high, log=dimension.log)
        else:
            found[name] = FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return found
