"""Going on in a wider box: a new study file's worth of studies that begin with the trials of the old ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from kftune.errors import UsageError
from kftune.space import Categorical, Dimension, Float, Int, Space, Value, with_condition
from kftune.storage.records import ELSEWHERE_KEY
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, StudyPlan, config_from_dict, make_plans
from kftune.study.samplers.coordinates import contains, distributions
from kftune.study.sessions.opening import sole_writer, study_records
from kftune.study.sessions.restoring import restore_lost
from kftune.study.sessions.warm_start import SOURCE_KEY, placed, take_over_sources

__all__ = ["WIDE_SUFFIX", "begin_wider", "take_over", "widened"]

WIDE_SUFFIX = "-wide"
_FREE = ("space", "sampler", "startup_trials")  # say nothing about what a trial's value is
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
        new: from :func:`widened`, or with wider boxes of one's own; other studies than those of ``old`` begin empty.
        repository: where both are stored.
        say: told how many trials were taken over.

    Raises:
        UsageError: the old studies are not stored, or a new box does not hold its old one; nothing is written.
        StudyChangedError: the new ones are stored with another configuration.
        StudyLockedError: another process is running studies in this database.
    """
    stored = {record.study for record in repository.studies(old.name)}
    befores, afters = ({(p.problem, p.optimizer): p for p in make_plans(config)} for config in (old, new))
    pairs = [(befores[labels], after) for labels, after in afters.items() if labels in befores]
    with sole_writer(repository):
        for before, after in pairs:
            if before.study not in stored:
                raise UsageError(f"{repository.name} holds no study {before.study!r}, so there is nothing to widen")
            _check_wider(before, after)
        restore_lost(old, make_plans(old), repository=repository, say=say)
        repository.register(study_records(new, {plan.study: new.trials for plan in afters.values()}))
        for before, after in pairs:
            n = _take_over(before, after, repository)
            say(f"{after.study} begins with {n} trials of {before.study}")


def begin_wider(config: StudyConfig, name: str, *, repository: Repository, say: Callable[[str], None]) -> StudyConfig:
    """Go on under another name in wider boxes of one's own, with the trials there are; see :func:`take_over`.

    Args:
        config: a study file as it is now; as it was, it is stored.
        name: what the study file is called that begins with its trials.
        repository: where it is stored.
        say: told how many trials were taken over.

    Returns:
        The study file under its new name.

    Raises:
        UsageError: nothing is stored, or more than boxes has changed, or one is not wider; nothing is written.
        StudyLockedError: another process is running studies in this database.
    """
    records = repository.studies(config.name)
    if name == config.name:
        raise UsageError(f"the wider study needs another name than {name!r}, under which the trials are stored")
    if not records:
        raise UsageError(f"{repository.name} holds no study {config.name!r}, so there is nothing to widen")
    # What was stored may lack the password.
    before = config_from_dict({**records[-1].config, "storage": config.storage}, f"{config.name} in {repository.name}")
    after = config.model_copy(update={"name": name})
    take_over(before, after, repository=repository, say=say)
    return after


def _check_wider(before: StudyPlan, after: StudyPlan) -> None:
    """See that every trial of a study has its place in another's search space, and means the same there.

    Raises:
        UsageError: it has not.
    """
    mine, theirs = (
        {key: value for key, value in plan.identity().items() if key not in _FREE} for plan in (before, after)
    )
    for key in (key for key in (*mine, *theirs) if mine.get(key) != theirs.get(key)):
        raise UsageError(f"{after.study}: {key} is not what it was in {before.study}; only boxes may be wider")
    old, new = before.space, after.space
    for name in dict.fromkeys((*old.names(), *new.names())):
        if name not in old.names() or name not in new.names():
            raise UsageError(f"{after.study}: {name} is not set in both boxes, so the trials there are have no place")
        if name in old.fixed:
            value = old.fixed[name]
            is_held = new.fixed[name] == value if name in new.fixed else _may_be(new, name, old.fixed)
        else:
            is_held = name in new.dimensions and _holds(new.dimensions[name], old.dimensions[name])
        if not is_held:
            raise UsageError(
                f"{after.study}: the box of {name} does not hold the stored one; only a wider box can begin with the "
                f"trials of {before.study}"
            )


def _may_be(space: Space, name: str, values: Mapping[str, Value]) -> bool:
    """Whether a dimension holds what was fixed so far."""
    dimension = space.dimensions[name]
    if isinstance(dimension, Float) and dimension.relative_to is not None:
        return False  # it may be inside for some trials only
    return name not in placed(Space({name: with_condition(dimension, None)}), {name: values[name]}, sampled={})[2]


def _holds(wide: Dimension, narrow: Dimension) -> bool:
    if type(wide) is not type(narrow) or wide.when != narrow.when:
        return False
    if isinstance(wide, Categorical) or isinstance(narrow, Categorical):
        assert isinstance(wide, Categorical)
        assert isinstance(narrow, Categorical)
        return {repr(choice) for choice in narrow.choices} <= {repr(choice) for choice in wide.choices}
    meanings = [(d.relative_to, d.complement) for d in (wide, narrow) if isinstance(d, Float)]
    return len(set(meanings)) <= 1 and wide.low <= narrow.low and narrow.high <= wide.high


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
        params = dict(trial.params)
        resolved = next((run.params for run in runs if run.trial == trial.number), None)
        if resolved is not None:  # what was fixed may be searched now
            params |= placed(after.widest or after.space, resolved, sampled=trial.params)[0]
        is_from_elsewhere = before.space != after.space or ELSEWHERE_KEY in trial.user_attrs
        target.add_trial(
            optuna.trial.create_trial(
                state=trial.state,
                value=trial.value,
                params=params,
                distributions={name: _holding(asked, name, trial) for name in params},
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
    is_held = name not in trial.params or contains(asked[name], trial.params[name])
    return asked[name] if is_held else trial.distributions[name]
