"""Stored results as data frames, one row per trial, run or curve point.

Every frame has its columns also when it has no rows. Seconds are wall or training seconds as in
:class:`kftune.training.results.RunResult`; losses are means over examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from kftune.analysis.results import FileResults, StudyResults, TrialResults

__all__ = ["points_frame", "runs_frame", "trials_frame"]

_STUDY = ("file_name", "study", "problem", "optimizer")
TRIAL_COLUMNS = (*_STUDY, "trial", "state", "value", "failure", "is_startup", "n_runs", "params", "sampled")
RUN_COLUMNS = (
    *_STUDY,
    *("trial", "repeat", "seed", "outcome", "value", "updates", "examples"),
    *("train_seconds", "overshoot_seconds", "evaluation_seconds", "setup_seconds", "warmup_seconds", "wall_seconds"),
    *("peak_memory_bytes", "device", "device_name", "session_id", "started_at", "attempt", "message", "params"),
)
POINT_COLUMNS = (
    *_STUDY,
    *("trial", "repeat", "point", "train_seconds", "update", "train_loss", "test_loss", "accuracy"),
)


def trials_frame(files: Sequence[FileResults]) -> pd.DataFrame:
    """One row per trial that was started, by study and number.

    ``value`` is NaN without one; ``failure`` is the gravest outcome among its runs if any failed, else None;
    ``params`` are resolved hyperparameters, ``sampled`` the sampler's own values.
    """
    rows = (
        (
            *names,
            trial.trial.number,
            trial.trial.state,
            trial.trial.value,
            trial.failure.value if trial.failure else None,
            trial.is_startup,
            len(trial.runs),
            dict(trial.params),
            dict(trial.trial.params),
        )
        for names, trial in _trials(files)
    )
    return pd.DataFrame(rows, columns=list(TRIAL_COLUMNS)).astype({"value": float})


def runs_frame(files: Sequence[FileResults]) -> pd.DataFrame:
    """One row per stored run, by study, trial and repeat; ``value`` is its objective (NaN: it has none)."""
    rows: list[dict[str, Any]] = []
    for names, trial in _trials(files):
        for run, value in zip(trial.runs, trial.run_values, strict=True):
            known: dict[str, Any] = dict(zip(_STUDY, names, strict=True))
            known |= {"value": value, "outcome": run.result.outcome.value, "params": dict(run.params)}
            for column in RUN_COLUMNS:
                if column not in known:
                    known[column] = getattr(run, column) if hasattr(run, column) else getattr(run.result, column)
            rows.append(known)
    return pd.DataFrame(rows, columns=list(RUN_COLUMNS)).astype({"value": float})


def points_frame(files: Sequence[FileResults]) -> pd.DataFrame:
    """One row per evaluation, in order; ``point`` counts them from 0, ``accuracy`` is NaN where there is none."""
    rows = (
        (
            *names,
            run.trial,
            run.repeat,
            number,
            point.train_seconds,
            point.update,
            point.train_loss,
            point.test_loss,
            point.accuracy,
        )
        for names, trial in _trials(files)
        for run in trial.runs
        for number, point in enumerate(run.result.curve)
    )
    return pd.DataFrame(rows, columns=list(POINT_COLUMNS)).astype({"accuracy": float})


def _trials(files: Sequence[FileResults]) -> Iterator[tuple[tuple[str, ...], TrialResults]]:
    for file in files:
        for study in file.studies:
            for trial in study.trials:
                yield _names(study), trial


def _names(study: StudyResults) -> tuple[str, ...]:
    record = study.record
    return (record.file_name, record.study, record.problem, record.optimizer)
