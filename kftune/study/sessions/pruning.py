"""Whether a run may go on after a point of its curve: Optuna's pruners, their resource the share of the budget."""

from __future__ import annotations

import math

import optuna

from kftune.objective import point_objective
from kftune.results import CurvePoint
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, StudyPlan

__all__ = ["Judge", "make_pruner"]

_ROUNDING = 1e-9


class Judge:
    """Reports the curves of first runs to Optuna and asks its pruner.

    A step is a part of the budget as long as the time between two evaluations, and counts when it is over; what is
    reported is the objective there, never above the untrained model's. Reports are stored with the trial, so that a
    resumed study judges alike. The last point of a run is not judged.

    Args:
        config: the study file.
        repository: where its studies are stored.
    """

    def __init__(self, config: StudyConfig, *, repository: Repository) -> None:
        self._config = config
        self._repository = repository
        self._pruner = make_pruner(config)

    def begin(self, plan: StudyPlan, number: int) -> None:
        """A first run begins: what an earlier attempt at it reported (lost, cut off or disturbed) no longer counts.

        Args:
            plan: its study.
            number: of its trial.
        """
        study = optuna.load_study(study_name=plan.study, storage=self._repository.optuna_storage)
        if study.get_trials(deepcopy=False)[number].intermediate_values:
            self._repository.forget_reports(plan.study, number)

    def goes_on(self, plan: StudyPlan, number: int, point: CurvePoint, *, untrained: CurvePoint) -> bool:
        """Whether the run may go on.

        Args:
            plan: its study.
            number: of its trial.
            point: the newest of its curve, neither the first nor the last.
            untrained: the first of its curve.
        """
        value = point_objective(point, self._config.objective)
        if not math.isfinite(value):
            return True  # it ends by itself
        step = math.floor(self._share(point) * self._config.evaluation.points + _ROUNDING)
        study = optuna.load_study(study_name=plan.study, storage=self._repository.optuna_storage, pruner=self._pruner)
        trial = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
        trial.report(min(value, point_objective(untrained, self._config.objective)), step)
        return not trial.should_prune()

    def _share(self, point: CurvePoint) -> float:
        budget = self._config.budget
        if budget.updates is not None:
            return point.update / budget.updates
        return point.train_seconds / (budget.seconds or math.inf)


def make_pruner(config: StudyConfig) -> optuna.pruners.BasePruner:
    """The study file's pruner; steps are those of :class:`Judge`."""
    settings, n_steps = config.pruner, config.evaluation.points
    if settings is None:
        return optuna.pruners.NopPruner()
    first = settings.first_step(n_steps)
    if settings.name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=first)
    if settings.name == "successive_halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=settings.reduction_factor)
    return optuna.pruners.HyperbandPruner(
        min_resource=first, max_resource=n_steps, reduction_factor=settings.reduction_factor
    )
