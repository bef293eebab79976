"""The trials of a study file: asked for in turn, taken over from an interrupted session, told when they are done."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna

from kftune.space import Value
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, StudyPlan
from kftune.study.ledger import Ledger
from kftune.study.samplers import grid_size, make_sampler
from kftune.training.objective import point_objective, run_objective
from kftune.training.results import CurvePoint, RunResult

__all__ = ["OpenTrial", "Trials", "run_seed"]


def run_seed(study_seed: int, repeat: int) -> int:
    """The seed of repeat ``repeat``: the same for every trial of every optimizer on every problem of a study file."""
    return int(np.random.SeedSequence((study_seed, repeat)).generate_state(1)[0])


def sampler_seed(study_seed: int, plan: StudyPlan) -> int:
    """A seed for the sampler of one study: the same under another file name, another for another optimizer."""
    label = zlib.crc32(f"{plan.problem}/{plan.optimizer}".encode())
    return int(np.random.SeedSequence((study_seed, label)).generate_state(1)[0])


@dataclass
class OpenTrial:
    """A trial in progress: its hyperparameters, and its runs so far by repeat."""

    plan: StudyPlan
    number: int
    params: dict[str, Value]
    results: dict[int, RunResult] = field(default_factory=dict)


class Trials:
    """Asks and tells.

    Args:
        config: the study file.
        plans: its studies.
        repository: where they are stored.
        ledger: told how long asking and telling take.

    Attributes:
        n_trials: trials by study; fewer than the study file says where a grid has no more points.
    """

    def __init__(
        self, config: StudyConfig, *, plans: Sequence[StudyPlan], repository: Repository, ledger: Ledger
    ) -> None:
        self._config = config
        self._plans = plans
        self._repository = repository
        self._ledger = ledger
        self._untrained: dict[tuple[str, int], CurvePoint] = {}
        self.n_trials = {plan.study: self._n_trials(plan) for plan in plans}

    def _n_trials(self, plan: StudyPlan) -> int:
        if self._config.sampler.name == "grid":
            return min(self._config.trials, grid_size(plan.space, self._config.sampler.options))
        return self._config.trials

    def n_finished(self) -> dict[str, int]:
        """Finished trials by study, as stored."""
        return {
            plan.study: sum(trial.state in ("complete", "fail") for trial in self._repository.trials(plan.study))
            for plan in self._plans
        }

    def finished(self) -> bool:
        """Whether every study has all its trials."""
        return all(count >= self.n_trials[study] for study, count in self.n_finished().items())

    def in_turn(self) -> Iterator[OpenTrial]:
        """Trial k of every study before trial k+1 of any; trials begun by an earlier session come where they belong."""
        stored = {plan.study: self._stored_runs(plan) for plan in self._plans}
        for number in range(self._config.trials):
            for plan in self._plans:
                trial = self._open(plan, number) if number < self.n_trials[plan.study] else None
                if trial is not None:
                    trial.results |= stored[plan.study].get(number, {})
                    yield trial

    def _stored_runs(self, plan: StudyPlan) -> dict[int, dict[int, RunResult]]:
        """Results of earlier sessions by trial and repeat."""
        by_trial: dict[int, dict[int, RunResult]] = {}
        for record in self._repository.runs(plan.study):
            by_trial.setdefault(record.trial, {})[record.repeat] = record.result
            self.remember_untrained(plan, record.repeat, record.result)
        return by_trial

    def _open(self, plan: StudyPlan, number: int) -> OpenTrial | None:
        """Ask for trial ``number``, or take it over from a session that did not finish it; None if it is finished."""
        with self._ledger.counted("asking"):
            study = self._study(plan, number)
            trials = study.get_trials(deepcopy=False)
            if number < len(trials):
                if trials[number].state.is_finished():
                    return None
                trial = optuna.trial.Trial(study, trials[number]._trial_id)
            else:
                trial = study.ask()
            return OpenTrial(plan, number, plan.space.suggest(trial))

    def _study(self, plan: StudyPlan, number: int) -> optuna.Study:
        sampler = make_sampler(
            self._config.sampler.name,
            options=self._config.sampler.options,
            space=plan.space,
            seed=sampler_seed(self._config.seed, plan),
            trial_number=number,
            n_startup_trials=self._config.startup_trials,
        )
        return optuna.load_study(study_name=plan.study, storage=self._repository.optuna_storage, sampler=sampler)

    def tell(self, trial: OpenTrial) -> tuple[float | None, float | None]:
        """Tell the sampler the mean over the trial's runs; returns it (None if a run crashed) and the study's best."""
        values = [self._value(trial.plan, repeat, result) for repeat, result in sorted(trial.results.items())]
        known = [value for value in values if value is not None]
        value = sum(known) / len(known) if len(known) == len(values) else None
        with self._ledger.counted("telling"):
            study = self._study(trial.plan, trial.number)
            if value is None:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial.number, value)
            complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        return value, min((t.value for t in complete if t.value is not None), default=None)

    def _value(self, plan: StudyPlan, repeat: int, result: RunResult) -> float | None:
        untrained = self._untrained.get((plan.problem, repeat))
        fallback = point_objective(untrained, self._config.objective) if untrained is not None else None
        return run_objective(result, self._config.objective, untrained=fallback)

    def remember_untrained(self, plan: StudyPlan, repeat: int, result: RunResult) -> None:
        """Keep the untrained model's point, for runs of this problem and repeat that end before they measure it."""
        if result.curve:
            self._untrained.setdefault((plan.problem, repeat), result.curve[0])
