"""The trials of a study file: asked for in turn, taken over from an interrupted session, told when they are done."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna

from kftune._targets import importable_from
from kftune.objective import point_objective, run_objective
from kftune.results import CurvePoint, Outcome, RunResult
from kftune.space import Value
from kftune.storage.repository import Repository, RunRecord
from kftune.study.config import StudyConfig, StudyPlan
from kftune.study.executors.ledger import Ledger
from kftune.study.samplers import make_sampler, planned_trials

__all__ = ["OpenTrial", "Trials", "run_seed"]


_FINISHED = ("complete", "fail", "pruned")


def run_seed(study_seed: int, repeat: int) -> int:
    """The seed of repeat ``repeat``: the same for every trial of every optimizer on every problem of a study file."""
    return int(np.random.SeedSequence((study_seed, repeat)).generate_state(1)[0])


def sampler_seed(study_seed: int, plan: StudyPlan) -> int:
    """A seed for the sampler of one study: the same under another file name, another for another optimizer."""
    label = zlib.crc32(f"{plan.problem}/{plan.optimizer}".encode())
    return int(np.random.SeedSequence((study_seed, label)).generate_state(1)[0])


@dataclass
class OpenTrial:
    """A trial in progress.

    Attributes:
        plan: its study.
        number: from 0.
        params: resolved hyperparameters.
        results: of its runs so far, by repeat.
        superseded: attempts at its runs that are superseded, by repeat.
        is_hopeless: whether its first run is; None before that is known.
    """

    plan: StudyPlan
    number: int
    params: dict[str, Value]
    results: dict[int, RunResult] = field(default_factory=dict)
    superseded: dict[int, list[RunRecord]] = field(default_factory=dict)
    is_hopeless: bool | None = None


class Trials:
    """Asks and tells.

    Args:
        config: the study file.
        plans: its studies.
        repository: where they are stored.
        ledger: told how long asking and telling take.

    Attributes:
        n_trials: trials by study; fewer than the study file says where a grid has no more points, and more again when
            the grid grows.
        n_begun: trials of all studies that are finished or were handed out.
        first_run_decides: whether a trial's other runs depend on its first.
    """

    def __init__(
        self, config: StudyConfig, *, plans: Sequence[StudyPlan], repository: Repository, ledger: Ledger
    ) -> None:
        self._config = config
        self._plans = plans
        self._repository = repository
        self._ledger = ledger
        self._untrained: dict[tuple[str, int], CurvePoint] = {}
        self._first_values: dict[str, dict[int, float]] = {plan.study: {} for plan in plans}
        self._next_numbers = {plan.study: 0 for plan in plans}
        self._stored: dict[str, dict[int, dict[int, RunResult]]] = {}
        self._superseded: dict[str, dict[int, dict[int, list[RunRecord]]]] = {}
        self.n_begun = 0
        self.first_run_decides = config.racing is not None or config.pruner is not None
        self.n_trials = {plan.study: self._n_trials(plan) for plan in plans}

    def _n_trials(self, plan: StudyPlan) -> int:
        """A grid has as many as it has configurations, and more once its best value turns out to be on an edge."""
        return planned_trials(
            self._config.sampler.key,
            options=self._config.sampler.options,
            space=plan.space,
            widest=plan.widest,
            seed=sampler_seed(self._config.seed, plan),
            trials=self._optuna_trials(plan),
            most=self._config.trials,
        )

    def _optuna_trials(self, plan: StudyPlan) -> list[optuna.trial.FrozenTrial]:
        storage = self._repository.optuna_storage
        try:
            study_id = storage.get_study_id_from_name(plan.study)
        except KeyError:
            return []  # it is not registered yet
        return storage.get_all_trials(study_id, deepcopy=False)

    def finished_numbers(self, study: str) -> set[int]:
        """Numbers of a study's finished trials, as stored."""
        return {trial.number for trial in self._repository.trials(study) if trial.state in _FINISHED}

    def n_finished(self) -> dict[str, int]:
        """Finished trials by study, as stored."""
        return {plan.study: len(self.finished_numbers(plan.study)) for plan in self._plans}

    def finished(self) -> bool:
        """Whether every study has all its trials."""
        return all(count >= self.n_trials[study] for study, count in self.n_finished().items())

    def read_stored(self) -> None:
        """Take in what earlier sessions stored; once, when the studies are registered."""
        self.n_begun = sum(self.n_finished().values())
        self._stored = {plan.study: self._stored_runs(plan) for plan in self._plans}
        self._superseded = {plan.study: self._superseded_attempts(plan) for plan in self._plans}

    def n_expected(self, study: str) -> int:
        """Trials that a study will have had, as far as is known; more than planned where a grid grew too soon."""
        return max(self.n_trials[study], self._next_numbers[study])

    def next_in_turn(self) -> OpenTrial | None:
        """Trial k of every study before trial k+1 of any; trials begun by an earlier session come where they belong.

        Returns:
            None if there is none now. A grid may grow, and have more, when a trial that is running has its value.
        """
        while True:
            ready = [plan for plan in self._plans if self._next_numbers[plan.study] < self.n_trials[plan.study]]
            if not ready:
                return None
            plan = min(ready, key=lambda plan: self._next_numbers[plan.study])  # the first of equals
            number = self._next_numbers[plan.study]
            self._next_numbers[plan.study] += 1
            trial = self._open(plan, number)
            if trial is not None:
                trial.results |= self._stored[plan.study].get(number, {})
                trial.superseded |= self._superseded[plan.study].get(number, {})
                self.n_begun += 1
                return trial

    def _stored_runs(self, plan: StudyPlan) -> dict[int, dict[int, RunResult]]:
        """Results of earlier sessions by trial and repeat."""
        by_trial: dict[int, dict[int, RunResult]] = {}
        for record in self._repository.runs(plan.study):
            by_trial.setdefault(record.trial, {})[record.repeat] = record.result
            self.remember_untrained(plan, record.repeat, record.result)
        for number in sorted(self.finished_numbers(plan.study)):
            self._remember_first(plan, number, by_trial.get(number, {}))
        return by_trial

    def _superseded_attempts(self, plan: StudyPlan) -> dict[int, dict[int, list[RunRecord]]]:
        """Superseded runs of earlier sessions: trial → repeat → attempts."""
        by_trial: dict[int, dict[int, list[RunRecord]]] = {}
        for record in self._repository.runs(plan.study, curves=False, superseded=True):
            by_trial.setdefault(record.trial, {}).setdefault(record.repeat, []).append(record)
        return by_trial

    def missing_repeats(self, trial: OpenTrial) -> list[int]:
        """Runs of a trial that are still to be made and may be begun, as far as its results tell."""
        missing = [repeat for repeat in range(self._config.repeats) if repeat not in trial.results]
        if not self.first_run_decides:
            return missing
        if 0 not in trial.results:
            return [0]
        if trial.is_hopeless is None:
            trial.is_hopeless = self._is_hopeless(trial)
        return [] if trial.results[0].outcome is Outcome.PRUNED or trial.is_hopeless else missing

    def _is_hopeless(self, trial: OpenTrial) -> bool:
        """See :class:`kftune.study.config.RacingConfig`."""
        value = self._value(trial.plan, 0, trial.results[0])
        known = self._first_values[trial.plan.study]
        earlier = [first for number, first in known.items() if number < trial.number]
        if self._config.racing is None or value is None or len(earlier) < self._config.startup_trials:
            return False
        return value > float(np.quantile(earlier, self._config.racing.quantile))

    def _remember_first(self, plan: StudyPlan, number: int, results: Mapping[int, RunResult]) -> None:
        value = self._value(plan, 0, results[0]) if 0 in results else None
        if value is not None:
            self._first_values[plan.study][number] = value

    def _open(self, plan: StudyPlan, number: int) -> OpenTrial | None:
        """Ask for trial ``number``, or take it over from a session that did not finish it; None if it is finished."""
        with self._ledger.counted("asking"):
            study = self._study(plan, number)
            trials = study.get_trials(deepcopy=False)
            state = trials[number].state if number < len(trials) else None
            if state is not None and state.is_finished():
                return None
            if state is optuna.trial.TrialState.RUNNING:
                trial = optuna.trial.Trial(study, trials[number]._trial_id)
            else:
                trial = study.ask()  # a new one, or the first that is enqueued: which is this, as those before it began
            return OpenTrial(plan, number, (plan.widest or plan.space).suggest(trial))

    def _study(self, plan: StudyPlan, number: int) -> optuna.Study:
        with importable_from(self._config.module_dir):
            sampler = make_sampler(
                self._config.sampler.key,
                options=self._config.sampler.options,
                space=plan.space,
                widest=plan.widest,
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
        self._remember_first(trial.plan, trial.number, trial.results)
        with self._ledger.counted("telling"):
            study = self._study(trial.plan, trial.number)
            if any(result.outcome is Outcome.PRUNED for result in trial.results.values()):
                # Its value is the last that was reported.
                study.tell(trial.number, state=optuna.trial.TrialState.PRUNED)
            elif value is None:
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial.number, value)
            self.n_trials[trial.plan.study] = self._n_trials(trial.plan)
            complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        return value, min((t.value for t in complete if t.value is not None), default=None)

    def _value(self, plan: StudyPlan, repeat: int, result: RunResult) -> float | None:
        return run_objective(result, self._config.objective, untrained=self.untrained(plan, repeat))

    def untrained(self, plan: StudyPlan, repeat: int) -> float | None:
        """The untrained model's objective; None if no run of this problem and repeat has measured it yet."""
        point = self._untrained.get((plan.problem, repeat))
        return None if point is None else point_objective(point, self._config.objective)

    def remember_untrained(self, plan: StudyPlan, repeat: int, result: RunResult) -> None:
        """Keep the untrained model's point, for runs of this problem and repeat that end before they measure it."""
        if result.curve:
            self._untrained.setdefault((plan.problem, repeat), result.curve[0])
