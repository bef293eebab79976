"""What a database holds, read once and sorted by study file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kftune.errors import UnknownNameError
from kftune.storage.repository import Repository, RunRecord, SessionRecord, StudyRecord, TrialRecord
from kftune.training.objective import Objective, point_objective, run_objective
from kftune.training.results import Outcome

__all__ = ["FileResults", "StudyResults", "TrialResults", "load_results"]

_GRAVEST_FIRST = (Outcome.CRASHED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT, Outcome.DIVERGED)


@dataclass(frozen=True, kw_only=True)
class TrialResults:
    """A trial with its runs.

    Attributes:
        trial: as Optuna holds it.
        runs: by repeat; fewer than asked for while the trial is running.
        run_values: the objective of each run; None where it has none (crashed, or read without curves).
        is_startup: drawn at random before the sampler's model took over.
    """

    trial: TrialRecord
    runs: tuple[RunRecord, ...]
    run_values: tuple[float | None, ...]
    is_startup: bool

    @property
    def is_finished(self) -> bool:
        """Whether its value is settled, be it that it has none."""
        return self.trial.state in ("complete", "fail", "pruned")

    @property
    def params(self) -> Mapping[str, Any]:
        """Resolved hyperparameters, or the sampled ones before the first run is stored."""
        return self.runs[0].params if self.runs else self.trial.params

    @property
    def failure(self) -> Outcome | None:
        """The gravest way in which one of its runs failed; None if none did."""
        outcomes = {run.result.outcome for run in self.runs}
        found = next((outcome for outcome in _GRAVEST_FIRST if outcome in outcomes), None)
        return Outcome.CRASHED if found is None and self.trial.state == "fail" else found

    @property
    def successes(self) -> list[RunRecord]:
        """Its runs that did not fail."""
        return [run for run in self.runs if run.result.outcome not in _GRAVEST_FIRST]


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """A study with its trials, by number."""

    record: StudyRecord
    trials: tuple[TrialResults, ...]

    @property
    def finished(self) -> list[TrialResults]:
        """Trials that are settled."""
        return [trial for trial in self.trials if trial.is_finished]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, by trial and repeat."""
        return [run for trial in self.trials for run in trial.runs]

    def ranked(self) -> list[TrialResults]:
        """Trials with a value and a run that did not fail, best first; equal ones in the order they were tried."""
        usable = [trial for trial in self.trials if trial.trial.value is not None and trial.successes]
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
    runs: dict[str, list[RunRecord]] = {}
    for run in repository.runs(curves=curves):
        runs.setdefault(run.study, []).append(run)
    return [_file_results(repository, name, runs) for name in file_names or available]


def objective_of(record: StudyRecord) -> Objective:
    """What a study minimises."""
    objective: Objective = record.config.get("objective", "test_loss")
    return objective


def _file_results(repository: Repository, name: str, runs: Mapping[str, Sequence[RunRecord]]) -> FileResults:
    records = repository.studies(name)
    untrained = _untrained(records, runs)
    studies = tuple(
        _study_results(record, repository.trials(record.study), runs.get(record.study, ()), untrained)
        for record in records
    )
    return FileResults(name=name, studies=studies, sessions=tuple(repository.sessions(name)), untrained=untrained)


def _untrained(records: Sequence[StudyRecord], runs: Mapping[str, Sequence[RunRecord]]) -> dict[tuple[str, int], float]:
    """Repeat r of every trial of every optimizer starts from the same weights, so any run's first point will do."""
    known: dict[tuple[str, int], float] = {}
    for record in records:
        for run in runs.get(record.study, ()):
            if run.result.curve:
                point = run.result.curve[0]
                known.setdefault((record.problem, run.repeat), point_objective(point, objective_of(record)))
    return known


def _study_results(
    record: StudyRecord,
    trials: Sequence[TrialRecord],
    runs: Sequence[RunRecord],
    untrained: Mapping[tuple[str, int], float],
) -> StudyResults:
    objective = objective_of(record)
    n_startup = int(record.config.get("startup_trials", 0))
    by_trial: dict[int, list[RunRecord]] = {}
    for run in runs:
        by_trial.setdefault(run.trial, []).append(run)

    def value(run: RunRecord) -> float | None:
        return run_objective(run.result, objective, untrained=untrained.get((record.problem, run.repeat)))

    return StudyResults(
        record=record,
        trials=tuple(
            TrialResults(
                trial=trial,
                runs=tuple(by_trial.get(trial.number, ())),
                run_values=tuple(value(run) for run in by_trial.get(trial.number, ())),
                is_startup=trial.number < n_startup,
            )
            for trial in trials
        ),
    )
