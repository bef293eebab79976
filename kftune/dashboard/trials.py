"""What the page knows of every trial, once, for all its figures: the text for the reader who points at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kftune.analysis.stored.results import FileResults, StudyResults, TrialResults
from kftune.wording import loss, number, objective_title, outcome_title

__all__ = ["trial_tables"]


def trial_tables(files: Sequence[FileResults]) -> dict[str, Any]:
    """Name of the study → its optimizer, objective, names of hyperparameters, and trials by number.

    A trial is whether it was a start-up one (0 or 1), its value, how its runs ended if one of them did not end well,
    and the hyperparameters in the order of their names (empty where it has none).
    """
    return {study.record.study: _table(study, file) for file in files for study in file.studies}


def _table(study: StudyResults, file: FileResults) -> dict[str, Any]:
    fixed = study.record.space.get("fixed", {})
    names = list(dict.fromkeys(name for trial in study.trials for name in trial.params if name not in fixed))
    return {
        "optimizer": study.record.optimizer,
        "objective": objective_title(file.objective),
        "names": names,
        "trials": [_row(trial, names) for trial in study.trials],
        "numbers": None if _is_counted(study) else [trial.trial.number for trial in study.trials],
    }


def _is_counted(study: StudyResults) -> bool:
    """Whether trial number i is the i-th one, as Optuna makes them."""
    return all(i == trial.trial.number for i, trial in enumerate(study.trials))


def _row(trial: TrialResults, names: Sequence[str]) -> list[Any]:
    outcomes = [outcome_title(run.result.outcome.value) for run in trial.runs]
    value = "no value" if trial.trial.value is None else loss(trial.trial.value)
    failed = ", ".join(outcomes) if trial.failure is not None else ""
    params = trial.params
    return [
        int(trial.is_startup),
        value,
        failed,
        *(number(params[name]) if name in params else "" for name in names),
    ]
