"""Settings of one's own, to be tried before the sampler proposes any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optuna

from kftune.errors import UnknownNameError, UsageError, suggestion
from kftune.space import Categorical, Dimension, Float, Value
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, StudyPlan, make_plans
from kftune.study.executors.ledger import Ledger
from kftune.study.samplers.coordinates import active_dimensions
from kftune.study.sessions.opening import sole_writer, study_records
from kftune.study.sessions.restoring import restore_lost
from kftune.study.sessions.trials import Trials
from kftune.study.sessions.warm_start import SOURCE_KEY, placed

__all__ = ["Given", "enqueue_given", "find_given", "given_params"]


class Given(NamedTuple):
    """A configuration for a study: the sampler's values by sampled name, and the dimensions that are left to it."""

    plan: StudyPlan
    params: Mapping[str, Value]
    unknown: tuple[str, ...]


def find_given(
    config: StudyConfig, settings: Mapping[str, Value], *, optimizer: str | None = None, problem: str | None = None
) -> list[Given]:
    """A configuration for the studies that are meant by labels; nothing is read or written.

    Args:
        config: the study file.
        settings: hyperparameters as the optimizer gets them; the sampler chooses what is not among them.
        optimizer: its label; needed where there are several.
        problem: its label; None for all problems.

    Raises:
        UsageError: there is no such optimizer, problem or hyperparameter, or a value is outside the search space.
    """
    chosen = _chosen(make_plans(config), optimizer, problem)
    return [Given(plan, *given_params(plan, settings)) for plan in chosen]


def enqueue_given(
    config: StudyConfig, given: Sequence[Given], *, repository: Repository, say: Callable[[str], None] | None = None
) -> dict[str, int]:
    """Put configurations into their studies' queues; the file's studies are stored if they are not yet.

    Each is the next trial of its study, before any that the sampler proposes and after those that wait already.

    Args:
        config: the study file.
        given: from :func:`find_given`.
        repository: open for writing.
        say: told what the sampler has to add, and of what will not be tried yet.

    Returns:
        Full name of each study → number of the trial; without studies where it waits or was tried already.

    Raises:
        StudyChangedError: a stored study has another configuration; nothing is stored.
        StudyLockedError: another process is running studies in this database; nothing is stored.
    """
    tell = say or (lambda text: None)
    plans = make_plans(config)
    found: dict[str, int] = {}
    with sole_writer(repository):
        restore_lost(config, plans, repository=repository, say=tell)
        n_trials = Trials(config, plans=plans, repository=repository, ledger=Ledger(n_slots=1)).n_trials
        repository.register(study_records(config, n_trials))
        for plan, params, unknown in given:
            study = optuna.load_study(study_name=plan.study, storage=repository.optuna_storage)
            number = len(study.get_trials(deepcopy=False))
            study.enqueue_trial(dict(params), {SOURCE_KEY: "given by hand"}, skip_if_exists=True)
            if len(study.get_trials(deepcopy=False)) == number:
                tell(f"{plan.study}: it waits there, or was tried, already")
                continue
            found[plan.study] = number
            if unknown:
                tell(f"{plan.study}: {', '.join(unknown)} not given: the sampler chooses")
            if number >= n_trials[plan.study]:
                tell(f"{plan.study} has its {n_trials[plan.study]} trials: it is tried when there are more (trials)")
    return found


def _chosen(plans: tuple[StudyPlan, ...], optimizer: str | None, problem: str | None) -> list[StudyPlan]:
    optimizers = list(dict.fromkeys(plan.optimizer for plan in plans))
    problems = list(dict.fromkeys(plan.problem for plan in plans))
    if optimizer is None and len(optimizers) > 1:
        raise UsageError(f"several optimizers could be meant: name one of {', '.join(optimizers)}")
    for kind, name, available in (("optimizer", optimizer, optimizers), ("problem", problem, problems)):
        if name is not None and name not in available:
            raise UnknownNameError(kind, name, available)
    return [p for p in plans if optimizer in (None, p.optimizer) and problem in (None, p.problem)]


def given_params(plan: StudyPlan, settings: Mapping[str, Value]) -> tuple[dict[str, Value], tuple[str, ...]]:
    """A configuration as the sampler's values by sampled name, and the dimensions that are left to it.

    Args:
        plan: the study.
        settings: hyperparameters as the optimizer gets them.

    Raises:
        UsageError: there is no such hyperparameter, it is fixed at another value, or outside its box.
    """
    if not settings:
        raise UsageError("nothing is given: name hyperparameters with their values, e.g. lr=0.1")
    space = plan.space
    for name in settings:
        if name not in space.names():
            raise UsageError(f"{plan.study} has no hyperparameter {name!r}{suggestion(name, space.names())}")
        if name in space.fixed and not _is_same(settings[name], space.fixed[name]):
            raise UsageError(f"{plan.study}: {name} is fixed at {space.fixed[name]!r}, got {settings[name]!r}")
    active, known = active_dimensions(space), {**space.fixed, **settings}
    for name in (name for name in settings if name in space.dimensions):
        dimension = space.dimensions[name]
        needed = [dimension.when.name] if dimension.when is not None else []
        needed += [dimension.relative_to] if isinstance(dimension, Float) and dimension.relative_to else []
        for other in needed:
            if other not in known:
                raise UsageError(f"{plan.study}: {name} depends on {other}, so give that too")
        when = dimension.when
        if name not in active or (when is not None and not when.holds(known)):
            assert when is not None  # nothing else makes a dimension inactive
            values = ", ".join(map(str, when.values))
            raise UsageError(f"{plan.study}: {name} is searched only where {when.name} is {values}")
    params, unknown, outside = placed(space, settings, sampled={})
    for name in (name for name in settings if name in outside):
        raise UsageError(f"{plan.study}: {_allowed(name, space.dimensions[name])}, got {name}={settings[name]!r}")
    return params, unknown


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other if isinstance(one, bool) else one == other


def _allowed(name: str, dimension: Dimension) -> str:
    if isinstance(dimension, Categorical):
        return f"{name} must be one of {', '.join(map(str, dimension.choices))}"
    what = f"{name}/{dimension.relative_to}" if isinstance(dimension, Float) and dimension.relative_to else name
    kind = "" if isinstance(dimension, Float) else "a whole number "
    return f"{what} must be {kind}from {dimension.low:g} to {dimension.high:g} (its box)"
