"""Best configurations of earlier studies, to be tried first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kftune.errors import UnknownNameError
from kftune.space import Dimension, Float, Space, Value
from kftune.storage.repository import Repository, StudyRecord
from kftune.study.config import StudyConfig, StudyPlan, WarmStartConfig, storage_url, without_password
from kftune.study.samplers.coordinates import active_dimensions, distribution

__all__ = ["SOURCE_KEY", "Candidate", "enqueue", "find_candidates", "placed", "take_over_sources"]

_DONE_KEY = "kftune:warm_start"
SOURCE_KEY = "kftune:source"
"""Optuna's user attribute of a trial that names the trial it was taken from."""
_REL_TOL = 1e-9  # of values that went through a text, or a change of variable and back


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a source has for a study.

    Attributes:
        study: the study's name.
        source: as the study file names it, without a password.
        origin: the trial it comes from; None if the source has none of this optimizer.
        params: its configuration, as the sampler's values by sampled name.
        unknown: the dimensions of the study that the trial has no value of.
        outside: the trial's values that the study's search space does not hold, in words; it is not tried then.
    """

    study: str
    source: str
    origin: str | None = None
    params: Mapping[str, Value]
    unknown: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


def find_candidates(config: StudyConfig, plans: Sequence[StudyPlan], repository: Repository | None) -> list[Candidate]:
    """The best configurations that ``warm_start`` names, for the studies of the same optimizer.

    Sources that all studies have had are not looked at again: they may be gone by now.

    Args:
        config: the study file.
        plans: its studies.
        repository: where they are or will be stored, which is only read; None if it is not there yet.

    Raises:
        UnknownNameError: a source that is not there.
        StorageError: its database cannot be read.
    """
    had = {plan.study: _sources_had(plan.study, repository) for plan in plans}
    found = []
    for start in config.warm_start:
        waiting = [plan for plan in plans if without_password(start.source) not in had[plan.study]]
        if not waiting:
            continue
        database, _, name = start.source.rpartition("#")
        if database:
            with Repository.open(storage_url(database), read_only=True) as other:
                is_own = repository is not None and _is_same(other, repository)
                found += _of_source(start, name, waiting, other, is_own=is_own)
        elif repository is not None:
            found += _of_source(start, name, waiting, repository, is_own=True)
        else:
            raise UnknownNameError("study to start from", name, ())
    return found


def _sources_had(study: str, repository: Repository | None) -> Sequence[str]:
    """The sources whose configurations a study was given already."""
    if repository is None:
        return ()
    storage = repository.optuna_storage
    try:
        study_id = storage.get_study_id_from_name(study)
    except KeyError:
        return ()  # it is not registered yet
    return list(storage.get_study_user_attrs(study_id).get(_DONE_KEY, ()))


def _is_same(one: Repository, other: Repository) -> bool:
    if one.path is None or other.path is None:
        return one.name == other.name
    return one.path.samefile(other.path)


def _of_source(
    start: WarmStartConfig, name: str, plans: Sequence[StudyPlan], repository: Repository, *, is_own: bool
) -> list[Candidate]:
    """Candidates from one database; of its own one, a study does not start from itself."""
    records = [record for record in repository.studies() if name in (record.file_name, record.study)]
    if not records:
        raise UnknownNameError("study to start from", name, repository.file_names())
    found: list[Candidate] = []
    for plan in plans:
        best = [
            candidate
            for record in records
            if record.identity.get("optimizer") == plan.optimizer_name and not (is_own and record.study == plan.study)
            for candidate in _best(start, record, plan, repository)
        ]
        found += best or [Candidate(study=plan.study, source=without_password(start.source), params={})]
    return found


def _best(start: WarmStartConfig, record: StudyRecord, plan: StudyPlan, repository: Repository) -> Iterator[Candidate]:
    # What the runs were made with: the sampler's values tell only with the source's space what they mean.
    resolved = {run.trial: run.params for run in repository.runs(record.study, curves=False)}
    trials = [
        trial
        for trial in repository.trials(record.study)
        if trial.state == "complete" and trial.value is not None and trial.number in resolved
    ]
    for trial in sorted(trials, key=lambda trial: (trial.value, trial.number))[: start.top]:
        params, unknown, outside = placed(plan.space, resolved[trial.number], sampled=trial.params)
        yield Candidate(
            study=plan.study,
            source=without_password(start.source),
            origin=f"{record.study}, trial {trial.number}",
            params=params,
            unknown=unknown,
            outside=tuple(f"{name}={value!r}" for name, value in outside.items()),
        )


def placed(
    space: Space, resolved: Mapping[str, Value], *, sampled: Mapping[str, Value]
) -> tuple[dict[str, Value], tuple[str, ...], dict[str, Value]]:
    """A configuration in another search space than the one it was found in.

    Args:
        space: to place it in.
        resolved: its hyperparameters, as the optimizer got them.
        sampled: the values as they were sampled, which are exact where the dimension is the same.

    Returns:
        The values for the sampler by sampled name; the dimensions of which nothing is known; the hyperparameters that
        no value for the sampler stands for.
    """
    params: dict[str, Value] = {}
    unknown = []
    same = {name for name, value in space.fixed.items() if name in resolved and _is_equal(resolved[name], value)}
    outside = {name: value for name, value in resolved.items() if name not in same}
    known = {**space.fixed, **resolved}
    for name, dimension in active_dimensions(space).items():
        if dimension.when is not None and dimension.when.name in known and not dimension.when.holds(known):
            continue
        key = dimension.sampled_name(name)
        if key not in sampled and name not in resolved:
            unknown.append(name)
            continue
        try:
            value = sampled[key] if key in sampled else _sampled(dimension, resolved[name], known)
            params[key] = _inside(distribution(dimension), value)
        except _OutsideError:
            continue
        outside.pop(name, None)
        outside.pop(key, None)
    return params, tuple(unknown), outside


class _OutsideError(Exception):
    """A dimension cannot have a value."""


def _sampled(dimension: Dimension, value: Value, known: Mapping[str, Value]) -> Value:
    """Inverse of ``dimension.resolve``."""
    if not isinstance(dimension, Float):
        return value
    if dimension.relative_to is not None:
        other = _number(known.get(dimension.relative_to))
        if other == 0:
            raise _OutsideError
        return _number(value) / other
    return 1 - _number(value) if dimension.complement else value


def _inside(distribution: BaseDistribution, value: Value) -> Value:
    """A sampled value as the distribution has it."""
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            if _is_equal(choice, value):
                return choice
        raise _OutsideError
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    number = _number(value)
    for bound in (distribution.low, distribution.high):
        if _is_equal(bound, number):
            return bound
    if not distribution.low < number < distribution.high:
        raise _OutsideError
    if isinstance(distribution, FloatDistribution):
        return number
    if number != round(number):
        raise _OutsideError
    return round(number)


def _number(value: Value) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _OutsideError
    return float(value)


def _is_equal(one: Value, other: Value) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=_REL_TOL)
    return one == other


def enqueue(
    candidates: Sequence[Candidate], *, plans: Sequence[StudyPlan], repository: Repository, say: Callable[[str], None]
) -> None:
    """Put candidates into their studies' queues; those outside the search space are left out.

    A study has every source once: what a source finds later is not tried any more.

    Args:
        candidates: from :func:`find_candidates`.
        plans: the studies, which are registered.
        repository: where they are stored.
        say: told of what is left out, and what the sampler has to add.
    """
    for plan in plans:
        mine = [candidate for candidate in candidates if candidate.study == plan.study]
        if not mine:
            continue
        study = optuna.load_study(study_name=plan.study, storage=repository.optuna_storage)
        for candidate in mine:
            if candidate.origin is None:
                say(f"{plan.study}: {candidate.source} has no trial of {plan.optimizer_name} to start from")
            elif candidate.outside:
                values, verb = ", ".join(candidate.outside), "are" if len(candidate.outside) > 1 else "is"
                say(f"{plan.study}: {candidate.origin} is not tried: {values} {verb} outside the search space")
            else:
                if candidate.unknown:
                    names = ", ".join(candidate.unknown)
                    say(f"{plan.study}: {candidate.origin} has no {names}: the sampler chooses")
                study.enqueue_trial(dict(candidate.params), {SOURCE_KEY: candidate.origin}, skip_if_exists=True)
        _note_sources(plan.study, [candidate.source for candidate in mine], repository)


def take_over_sources(before: str, after: str, repository: Repository) -> None:
    """A study that begins with another's trials has had what that one was given."""
    _note_sources(after, _sources_had(before, repository), repository)


def _note_sources(study: str, sources: Sequence[str], repository: Repository) -> None:
    had = _sources_had(study, repository)
    stored = optuna.load_study(study_name=study, storage=repository.optuna_storage)
    stored.set_user_attr(_DONE_KEY, list(dict.fromkeys((*had, *sources))))
