"""Optuna's part of a study made anew from kftune's runs, where somebody has deleted it outside kftune."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from kftune.objective import point_objective, run_objective
from kftune.results import Outcome, RunResult
from kftune.storage.repository import Repository, RunRecord
from kftune.study.config import StudyConfig, StudyPlan
from kftune.study.samplers.coordinates import distributions
from kftune.study.sessions.opening import study_records
from kftune.study.sessions.warm_start import placed

__all__ = ["restore_lost"]


def restore_lost(
    config: StudyConfig, plans: Sequence[StudyPlan], *, repository: Repository, say: Callable[[str], None]
) -> None:
    """Give studies whose Optuna study is gone, or empty, their trials back: configurations and values of the runs.

    A trial that had not all its runs is one that was interrupted. What only Optuna knew is lost: which configurations
    were given, and what a pruner was told.

    Args:
        config: the study file.
        plans: its studies.
        repository: whose lock is held.
        say: told which studies were restored.

    Raises:
        StudyChangedError: a stored study has another configuration; nothing is written.
    """
    names = {record.study for record in repository.studies(config.name)}
    there = optuna.get_all_study_names(repository.optuna_storage)
    runs = {plan.study: repository.runs(plan.study) for plan in plans if plan.study in names}
    lost = [plan for plan in plans if runs.get(plan.study) and _is_lost(plan.study, there, repository)]
    if not lost:
        return
    repository.check(study_records(config, {plan.study: config.trials for plan in plans}))
    untrained = _untrained(config, plans, runs)
    for plan in lost:
        if plan.study not in there:
            optuna.create_study(study_name=plan.study, storage=repository.optuna_storage, direction="minimize")
        trials = _trials(config, plan, runs[plan.study], untrained)
        optuna.load_study(study_name=plan.study, storage=repository.optuna_storage).add_trials(trials)
        say(
            f"{plan.study}: its Optuna study was deleted outside kftune; its {len(trials)} trials are restored from "
            "the runs that are stored"
        )


def _is_lost(study: str, there: Sequence[str], repository: Repository) -> bool:
    return study not in there or not repository.trials(study)


def _untrained(
    config: StudyConfig, plans: Sequence[StudyPlan], runs: Mapping[str, Sequence[RunRecord]]
) -> dict[tuple[str, int], float]:
    """(problem, repeat) → objective of the untrained model, from any run that has measured it."""
    found: dict[tuple[str, int], float] = {}
    for plan in plans:
        for run in runs.get(plan.study, ()):
            if run.result.curve:
                found.setdefault((plan.problem, run.repeat), point_objective(run.result.curve[0], config.objective))
    return found


def _trials(
    config: StudyConfig,
    plan: StudyPlan,
    runs: Sequence[RunRecord],
    untrained: Mapping[tuple[str, int], float],
) -> list[FrozenTrial]:
    by_trial: dict[int, list[RunRecord]] = {}
    for run in runs:
        by_trial.setdefault(run.trial, []).append(run)
    return [_trial(config, plan, by_trial.get(number, ()), untrained) for number in range(max(by_trial) + 1)]


def _trial(
    config: StudyConfig, plan: StudyPlan, runs: Sequence[RunRecord], untrained: Mapping[tuple[str, int], float]
) -> FrozenTrial:
    if not runs:
        return create_trial(state=TrialState.WAITING)  # its place is asked for again
    space = plan.widest or plan.space
    params, _, outside = placed(space, runs[0].params, sampled={})
    asked = distributions(space)
    state, value = TrialState.RUNNING, None
    if len(runs) >= config.repeats or any(run.result.outcome is Outcome.PRUNED for run in runs):
        results = {run.repeat: run.result for run in runs}
        state, value = _settled(config, plan, results, untrained)
    return create_trial(
        # A sampler could not place what lies outside the box that it is asked for.
        state=TrialState.FAIL if outside else state,
        value=None if outside else value,
        params=params,
        distributions={name: asked[name] for name in params},
    )


def _settled(
    config: StudyConfig,
    plan: StudyPlan,
    results: Mapping[int, RunResult],
    untrained: Mapping[tuple[str, int], float],
) -> tuple[TrialState, float | None]:
    """How a trial was told to the sampler: the mean over its runs, none if one has none."""
    if any(result.outcome is Outcome.PRUNED for result in results.values()):
        return TrialState.PRUNED, None
    values = [
        run_objective(result, config.objective, untrained=untrained.get((plan.problem, repeat)))
        for repeat, result in sorted(results.items())
    ]
    known = [value for value in values if value is not None]
    return (TrialState.COMPLETE, sum(known) / len(known)) if len(known) == len(values) else (TrialState.FAIL, None)
