"""Going on in a wider box: a new study file's worth of studies that begin with the trials of the old ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from kftune.errors import UsageError
from kftune.space import Float, Int
from kftune.storage.records import ELSEWHERE_KEY
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, StudyPlan, config_from_dict, make_plans
from kftune.study.samplers.coordinates import contains, distributions
from kftune.study.sessions.opening import sole_writer, study_records
from kftune.study.sessions.restoring import restore_lost
from kftune.study.sessions.warm_start import SOURCE_KEY, take_over_sources

__all__ = ["WIDE_SUFFIX", "take_over", "widened"]

WIDE_SUFFIX = "-wide"
_GIVEN = "fixed_params"  # where Optuna keeps what was enqueued

Boxes = Mapping[tuple[str, str], tuple[float, float]]
"""(optimizer's label, dimension) → the range to search instead."""


def widened(config: StudyConfig, boxes: Boxes) -> StudyConfig:
    """The study file with wider boxes, under a name of its own, with as many trials again.

    A limit on trials is doubled too, as the trials that are taken over count; one on hours is of the new sessions.

    Args:
        config: the study file.
        boxes: see :data:`Boxes`; batch sizes are kept to the training sets.

    Raises:
        ConfigError: an optimizer does not accept what is in a box.
    """
    plans = make_plans(config)
    data = config.to_dict() | {"storage": config.storage}
    optimizers = [dict(item) for item in data["optimizers"]]
    labels = list(dict.fromkeys(plan.optimizer for plan in plans))
    for (label, name), (low, high) in boxes.items():
        item = optimizers[labels.index(label)]
        own = next(plan.space.dimensions[name] for plan in plans if plan.optimizer == label)
        item["space"] = {**item["space"], name: {**item["space"].get(name, {}), **_range(own, low, high)}}
    changed = {"name": f"{config.name}{WIDE_SUFFIX}", "optimizers": optimizers, "trials": 2 * config.trials}
    if config.limit.trials is not None:
        changed["limit"] = {**data["limit"], "trials": 2 * config.limit.trials}
    return config_from_dict(data | changed, f"{config.name}{WIDE_SUFFIX}")


def _range(own: Any, low: float, high: float) -> dict[str, Any]:
    if isinstance(own, Int):
        return {"low": int(low), "high": int(high), "log": own.log}
    assert isinstance(own, Float)  # categories have no box
    kept: dict[str, Any] = {"low": low, "high": high, "log": own.log}
    kept |= {"complement": True} if own.complement else {}
    return kept | ({"relative_to": own.relative_to} if own.relative_to else {})


def take_over(old: StudyConfig, new: StudyConfig, *, repository: Repository, say: Callable[[str], None]) -> None:
    """Register the new studies and begin each with the settled trials of its old one, with their runs.

    Goes on where it was cut off.

    Args:
        old: the study file whose trials are taken.
        new: from :func:`widened`.
        repository: where both are stored.
        say: told how many trials were taken over.

    Raises:
        UsageError: the old studies are not stored.
        StudyChangedError: the new ones are stored with another configuration.
        StudyLockedError: another process is running studies in this database.
    """
    stored = {record.study for record in repository.studies(old.name)}
    with sole_writer(repository):
        for before in make_plans(old):
            if before.study not in stored:
                raise UsageError(f"{repository.name} holds no study {before.study!r}, so there is nothing to widen")
        restore_lost(old, make_plans(old), repository=repository, say=say)
        repository.register(study_records(new, {plan.study: new.trials for plan in make_plans(new)}))
        for before, after in zip(make_plans(old), make_plans(new), strict=True):
            n = _take_over(before, after, repository)
            say(f"{after.study} begins with {n} trials of {before.study}")


def _take_over(before: StudyPlan, after: StudyPlan, repository: Repository) -> int:
    storage = repository.optuna_storage
    source = optuna.load_study(study_name=before.study, storage=storage)
    target = optuna.load_study(study_name=after.study, storage=storage)
    settled = [trial for trial in source.get_trials(deepcopy=False) if trial.state.is_finished()]
    # As trials of the new study are asked for: a sampler may see only dimensions that are the same in all trials.
    asked = distributions(after.widest or after.space)
    runs = repository.runs(before.study)
    n_there = len(target.get_trials(deepcopy=False))
    done = {(run.trial, run.repeat) for run in repository.runs(after.study, curves=False)}
    ledgers = {session.id: session.ledger for session in repository.sessions()}
    for number, trial in enumerate(settled):
        if number < n_there:
            continue
        # The runs first: a trial that is there has all of them, also after a kill between the two.
        for run in runs:
            if run.trial == trial.number and (number, run.repeat) not in done:
                moved = replace(run, study=after.study, trial=number)
                repository.add_run(moved, session_ledger=ledgers[run.session_id])
        is_from_elsewhere = before.space != after.space or ELSEWHERE_KEY in trial.user_attrs
        target.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                value=trial.value,
                params=trial.params,
                distributions={name: _holding(asked, name, trial) for name in trial.params},
                intermediate_values=trial.intermediate_values,
                # That a configuration was given, and not proposed.
                system_attrs={name: trial.system_attrs[name] for name in (_GIVEN,) if name in trial.system_attrs},
                user_attrs={SOURCE_KEY: f"{before.study}, trial {trial.number}"}
                | ({ELSEWHERE_KEY: True} if is_from_elsewhere else {}),
            )
        )
    take_over_sources(before.study, after.study, repository)
    return len(settled)


def _holding(asked: Mapping[str, BaseDistribution], name: str, trial: FrozenTrial) -> BaseDistribution:
    """What a new trial would be asked for; the trial's own distribution where that does not reach as far as it did."""
    return asked[name] if contains(asked[name], trial.params[name]) else trial.distributions[name]
