"""What a database holds, read once and sorted by study file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, get_args

from kftune.analysis.stored.bounds import bounded_runs, bounded_sessions, bounded_trials
from kftune.errors import UnknownNameError
from kftune.objective import Objective, point_objective, run_objective
from kftune.results import Outcome
from kftune.storage.records import Purpose
from kftune.storage.repository import Repository, RunRecord, SessionRecord, StudyRecord, TrialRecord

__all__ = ["FileResults", "StudyResults", "TrialResults", "load_results"]

_PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
_DESIGNS = ("qmc", "grid")
_GRAVEST_FIRST = (Outcome.CRASHED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT, Outcome.DIVERGED, Outcome.PRUNED)


@dataclass(frozen=True, kw_only=True)
class TrialResults:
    """A trial with its runs.

    Attributes:
        trial: as Optuna holds it.
        runs: of the search, by repeat; fewer than asked for while the trial is running, if it was pruned, and if its
            first was hopeless.
        run_values: the objective of each run; None where it has none (crashed, or read without curves).
        is_startup: drawn at random from the study's own search space, and not by the sampler's model or design.
        repeats: how many runs a trial of its study is to have.
    """

    trial: TrialRecord
    runs: tuple[RunRecord, ...]
    run_values: tuple[float | None, ...]
    is_startup: bool
    repeats: int = 0

    @property
    def is_finished(self) -> bool:
        """Whether its value is settled, be it that it has none."""
        return self.trial.state in ("complete", "fail", "pruned")

    @property
    def is_pruned(self) -> bool:
        """Whether it was stopped because it fell behind; its value is then not one at the end of the budget."""
        return self.trial.state == "pruned"

    @property
    def is_raced(self) -> bool:
        """Whether its first run was hopeless, so that it was not repeated."""
        return self.trial.state == "complete" and len(self.runs) < self.repeats

    @property
    def params(self) -> Mapping[str, Any]:
        """Resolved hyperparameters, or the sampled ones before the first run is stored."""
        return self.runs[0].params if self.runs else self.trial.params

    @property
    def failure(self) -> Outcome | None:
        """The gravest way in which one of its runs did not end well, being pruned the least grave; None if all did."""
        outcomes = {run.result.outcome for run in self.runs}
        found = next((outcome for outcome in _GRAVEST_FIRST if outcome in outcomes), None)
        if found is None and self.trial.state == "fail":
            return Outcome.CRASHED
        return Outcome.PRUNED if found is None and self.is_pruned else found

    @property
    def successes(self) -> list[RunRecord]:
        """Its runs that ended well: with the whole budget and a loss."""
        return [run for run in self.runs if run.result.outcome not in _GRAVEST_FIRST]


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """A study with its trials.

    Attributes:
        record: the study itself.
        trials: those that were started, by number.
        confirmations: runs that confirm some of them, by budget factor, trial and repeat.
        superseded: runs that were made again, or are to be; they count for nothing but seconds.
        untrained: repeat → objective of the untrained model, as far as it is known.
        untrained_confirming: the same for the seeds of the confirming runs.
    """

    record: StudyRecord
    trials: tuple[TrialResults, ...]
    confirmations: tuple[RunRecord, ...] = ()
    superseded: tuple[RunRecord, ...] = ()
    untrained: Mapping[int, float] = field(default_factory=dict)
    untrained_confirming: Mapping[int, float] = field(default_factory=dict)

    @property
    def objective(self) -> Objective:
        """What it minimises."""
        return objective_of(self.record)

    @property
    def finished(self) -> list[TrialResults]:
        """Trials that are settled."""
        return [*self._finished]

    @cached_property
    def _finished(self) -> tuple[TrialResults, ...]:
        return tuple(trial for trial in self.trials if trial.is_finished)

    @property
    def runs(self) -> list[RunRecord]:
        """All runs of the search that count, by trial and repeat."""
        return [*self._runs]

    @cached_property
    def _runs(self) -> tuple[RunRecord, ...]:
        return tuple(run for trial in self.trials for run in trial.runs)

    def ranked(self) -> list[TrialResults]:
        """Trials with a value and a run that ended well, best first; equal ones in the order they were tried.

        Pruned trials are not among them: their value is not one at the end of the budget.
        """
        return [*self._ranked]

    @cached_property
    def _ranked(self) -> list[TrialResults]:
        usable = [t for t in self.trials if t.trial.value is not None and t.successes and not t.is_pruned]
        return sorted(usable, key=lambda trial: (trial.trial.value, trial.trial.number))


@dataclass(frozen=True, kw_only=True)
class FileResults:
    """All studies of one study file, in the order of the file, and the sessions that made them.

    Attributes:
        name: the study file's ``name``.
        studies: problem by problem.
        sessions: in the order they began.
        untrained: (problem, repeat) → objective of the untrained model, as far as it is known.
    """

    name: str
    studies: tuple[StudyResults, ...]
    sessions: tuple[SessionRecord, ...]
    untrained: Mapping[tuple[str, int], float]

    @property
    def confirmations(self) -> tuple[RunRecord, ...]:
        """Confirming runs of all its studies; they have seeds of their own and no part in any trial's value."""
        return tuple(run for study in self.studies for run in study.confirmations)

    @property
    def superseded(self) -> tuple[RunRecord, ...]:
        """Runs of all its studies, of either purpose, that were made again or are to be."""
        return tuple(run for study in self.studies for run in study.superseded)

    @property
    def config(self) -> Mapping[str, Any]:
        """The study file, resolved, as it was last run."""
        return self.studies[-1].record.config

    @property
    def objective(self) -> Objective:
        """What the study file minimises."""
        return objective_of(self.studies[-1].record)

    @property
    def problems(self) -> tuple[str, ...]:
        """Labels of the problems, in order."""
        return tuple(dict.fromkeys(study.record.problem for study in self.studies))

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Labels of the optimizers, in order."""
        return tuple(dict.fromkeys(study.record.optimizer for study in self.studies))

    def of_problem(self, problem: str) -> list[StudyResults]:
        """The studies of one problem."""
        return [study for study in self.studies if study.record.problem == problem]


def load_results(
    repository: Repository, file_names: Sequence[str] | None = None, *, curves: bool = True
) -> list[FileResults]:
    """Read everything about some study files.

    Args:
        repository: an open database.
        file_names: names of study files, in the order wanted; None for all, in the order they came.
        curves: with every run's curve. Without, reading is much faster, but values are known of trials only: every
            ``run_values`` is None and ``untrained`` is empty.

    Raises:
        UnknownNameError: a name of which nothing is stored.
    """
    available = repository.file_names()
    for name in file_names or ():
        if name not in available:
            raise UnknownNameError("study", name, available)
    runs = _Runs(
        search=_by_study(repository.runs(curves=curves)),
        confirm=_by_study(repository.runs(curves=curves, purpose="confirm")),
        superseded=_by_study(
            [run for purpose in _PURPOSES for run in repository.runs(curves=curves, purpose=purpose, superseded=True)]
        ),
    )
    return [_file_results(repository, name, runs) for name in file_names or available]


class _Runs(NamedTuple):
    """The runs of a database, each kind by study."""

    search: dict[str, list[RunRecord]]
    confirm: dict[str, list[RunRecord]]
    superseded: dict[str, list[RunRecord]]


def _by_study(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    sorted_runs: dict[str, list[RunRecord]] = {}
    for run in bounded_runs(runs):
        sorted_runs.setdefault(run.study, []).append(run)
    return sorted_runs


def objective_of(record: StudyRecord) -> Objective:
    """What a study minimises."""
    objective: Objective = record.config.get("objective", "test_loss")
    return objective


def sampler_of(record: StudyRecord) -> str:
    """The sampler's name, or target; empty if it is not stored."""
    sampler = record.config.get("sampler") or {}
    return sampler if isinstance(sampler, str) else str(sampler.get("name") or sampler.get("target") or "")


def n_random(record: StudyRecord) -> float:
    """How many of the first trials were drawn at random, given ones aside."""
    sampler = sampler_of(record)
    if sampler == "random":
        return math.inf
    # A design begins with its first trial: its points are neither independent nor spread as random ones are.
    return 0 if sampler in _DESIGNS else int(record.config.get("startup_trials", 0))


def _file_results(repository: Repository, name: str, runs: _Runs) -> FileResults:
    records = repository.studies(name)
    untrained, confirming = _untrained(records, runs.search), _untrained(records, runs.confirm)
    studies = tuple(
        StudyResults(
            record=record,
            trials=_trials(
                record, bounded_trials(repository.trials(record.study)), runs.search.get(record.study, ()), untrained
            ),
            confirmations=tuple(runs.confirm.get(record.study, ())),
            superseded=tuple(runs.superseded.get(record.study, ())),
            untrained=_of_problem(untrained, record.problem),
            untrained_confirming=_of_problem(confirming, record.problem),
        )
        for record in records
    )
    sessions = tuple(bounded_sessions(repository.sessions(name)))
    return FileResults(name=name, studies=studies, sessions=sessions, untrained=untrained)


def _untrained(records: Sequence[StudyRecord], runs: Mapping[str, Sequence[RunRecord]]) -> dict[tuple[str, int], float]:
    """Repeat r of every trial of every optimizer starts from the same weights, so any run's first point will do."""
    known: dict[tuple[str, int], float] = {}
    for record in records:
        for run in runs.get(record.study, ()):
            if run.result.curve and run.result.curve[0].update == 0:
                point = run.result.curve[0]
                known.setdefault((record.problem, run.repeat), point_objective(point, objective_of(record)))
    return known


def _of_problem(untrained: Mapping[tuple[str, int], float], problem: str) -> dict[int, float]:
    return {repeat: value for (of, repeat), value in untrained.items() if of == problem}


def _trials(
    record: StudyRecord,
    trials: Sequence[TrialRecord],
    runs: Sequence[RunRecord],
    untrained: Mapping[tuple[str, int], float],
) -> tuple[TrialResults, ...]:
    objective = objective_of(record)
    n_startup = n_random(record)
    by_trial: dict[int, list[RunRecord]] = {}
    for run in runs:
        by_trial.setdefault(run.trial, []).append(run)

    def value(run: RunRecord) -> float | None:
        return run_objective(run.result, objective, untrained=untrained.get((record.problem, run.repeat)))

    return tuple(
        TrialResults(
            trial=trial,
            runs=tuple(by_trial.get(trial.number, ())),
            run_values=tuple(value(run) for run in by_trial.get(trial.number, ())),
            is_startup=trial.number < n_startup and not trial.is_enqueued and not trial.is_from_elsewhere,
            repeats=int(record.config.get("repeats", 0)),
        )
        for trial in trials
        if trial.state != "waiting"  # enqueued, and not begun
    )
