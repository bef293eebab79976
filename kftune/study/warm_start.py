"""Best configurations of earlier studies, to be tried first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from kftune.errors import UnknownNameError
from kftune.storage.repository import Repository, StudyRecord
from kftune.study.config import StudyConfig, StudyPlan, WarmStartConfig, storage_url
from kftune.study.samplers._coordinates import distributions

__all__ = ["Candidate", "enqueue", "find_candidates"]

_DONE_KEY = "kftune:warm_start"
_SOURCE_KEY = "kftune:source"


@dataclass(frozen=True)
class Candidate:
    """A configuration for a study: the sampler's values by sampled name, and where they come from."""

    study: str
    params: dict[str, Any]
    source: str
    origin: str


def find_candidates(config: StudyConfig, plans: Sequence[StudyPlan], repository: Repository) -> list[Candidate]:
    """The best configurations that ``warm_start`` names, for the studies of the same optimizer.

    Raises:
        UnknownNameError: a source that is not there.
        StorageError: its database cannot be read.
    """
    found = []
    for start in config.warm_start:
        database, _, name = start.source.rpartition("#")
        if not database:
            found += _of_source(start, name, plans, repository)
            continue
        with Repository.open(storage_url(database), read_only=True) as other:
            found += _of_source(start, name, plans, other)
    return found


def _of_source(
    start: WarmStartConfig, name: str, plans: Sequence[StudyPlan], repository: Repository
) -> list[Candidate]:
    records = [record for record in repository.studies() if name in (record.file_name, record.study)]
    if not records:
        raise UnknownNameError("study to start from", name, repository.file_names())
    return [
        candidate
        for plan in plans
        for record in records
        if record.identity.get("optimizer") == plan.optimizer_name and record.study != plan.study
        for candidate in _best(start, record, plan, repository)
    ]


def _best(start: WarmStartConfig, record: StudyRecord, plan: StudyPlan, repository: Repository) -> list[Candidate]:
    trials = [t for t in repository.trials(record.study) if t.state == "complete" and t.value is not None]
    best = sorted(trials, key=lambda trial: (trial.value, trial.number))[: start.top]
    names = distributions(plan.space)
    return [
        Candidate(
            study=plan.study,
            params={name: value for name, value in trial.params.items() if name in names},
            source=start.source,
            origin=f"{record.study}, trial {trial.number}",
        )
        for trial in best
    ]


def enqueue(
    candidates: Sequence[Candidate], *, plans: Sequence[StudyPlan], repository: Repository, say: Callable[[str], None]
) -> None:
    """Put candidates into their studies' queues, each source once; those outside the search space are left out.

    Args:
        candidates: from :func:`find_candidates`.
        plans: the studies, which are registered.
        repository: where they are stored.
        say: told of what is left out.
    """
    for plan in plans:
        study = optuna.load_study(study_name=plan.study, storage=repository.optuna_storage)
        done = list(study.user_attrs.get(_DONE_KEY, ()))
        mine = [candidate for candidate in candidates if candidate.study == plan.study]
        for candidate in mine:
            if candidate.source in done:
                continue
            outside = _outside(candidate, plan)
            if outside:
                say(f"{plan.study}: {candidate.origin} is not tried: {outside} is outside the search space")
            else:
                study.enqueue_trial(candidate.params, {_SOURCE_KEY: candidate.origin}, skip_if_exists=True)
        new = dict.fromkeys(candidate.source for candidate in mine if candidate.source not in done)
        if new:
            study.set_user_attr(_DONE_KEY, [*done, *new])


def _outside(candidate: Candidate, plan: StudyPlan) -> str | None:
    """The first value that the study's search space does not hold, in words."""
    allowed = distributions(plan.space)
    for name, value in candidate.params.items():
        distribution = allowed[name]
        if isinstance(distribution, FloatDistribution | IntDistribution):
            inside = isinstance(value, int | float) and distribution.low <= value <= distribution.high
        else:
            inside = isinstance(distribution, CategoricalDistribution) and value in distribution.choices
        if not inside:
            return f"{name}={value!r}"
    return None
