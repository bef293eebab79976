"""Stored results as data frames, one row per trial, run or curve point.

Every frame has its columns also when it has no rows. Seconds are wall or training seconds as in
:class:`kftune.results.RunResult`; losses are means over examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from kftune.analysis.stored.results import FileResults, StudyResults, TrialResults
from kftune.objective import run_objective
from kftune.storage.repository import RunRecord

__all__ = ["points_frame", "runs_frame", "trials_frame"]

_STUDY = ("file_name", "study", "problem", "optimizer")
TRIAL_COLUMNS = (*_STUDY, "trial", "state", "value", "failure", "is_startup", "n_runs", "params", "sampled")
RUN_COLUMNS = (
    *_STUDY,
    *("trial", "repeat", "seed", "outcome", "value", "updates", "examples"),
    *("train_seconds", "overshoot_seconds", "evaluation_seconds", "setup_seconds", "warmup_seconds", "wall_seconds"),
    *("peak_memory_bytes", "device", "device_name", "session_id", "started_at", "attempt", "message", "params"),
    *("purpose", "budget_factor", "superseded", "slowdown"),
)
POINT_COLUMNS = (
    *_STUDY,
    *("trial", "repeat", "point", "train_seconds", "update", "train_loss", "test_loss", "accuracy"),
    *("purpose", "budget_factor", "attempt", "readings"),
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


def runs_frame(files: Sequence[FileResults], *, every: bool = False) -> pd.DataFrame:
    """One row per stored run, by study, trial and repeat; ``value`` is its objective (NaN: it has none).

    Args:
        files: from :func:`kftune.analysis.stored.results.load_results`.
        every: with the confirming and the superseded runs, which stand after the search's of their study.
    """
    rows: list[dict[str, Any]] = []
    for study, run in _runs(files, every=every):
        known: dict[str, Any] = dict(zip(_STUDY, _names(study), strict=True))
        known |= {
            "value": _value(study, run),
            "outcome": run.result.outcome.value,
            "params": dict(run.params),
            "slowdown": run.result.calibration.slowdown if run.result.calibration is not None else None,
        }
        for column in RUN_COLUMNS:
            if column not in known:
                known[column] = getattr(run, column) if hasattr(run, column) else getattr(run.result, column)
        rows.append(known)
    return pd.DataFrame(rows, columns=list(RUN_COLUMNS)).astype({"value": float, "slowdown": float})


def points_frame(files: Sequence[FileResults], *, every: bool = False) -> pd.DataFrame:
    """One row per evaluation, in order; ``point`` counts them from 0, ``accuracy`` is NaN where there is none.

    Args:
        files: from :func:`kftune.analysis.stored.results.load_results`, with curves.
        every: those of the confirming runs too.
    """
    rows = (
        (
            *_names(study),
            run.trial,
            run.repeat,
            number,
            point.train_seconds,
            point.update,
            point.train_loss,
            point.test_loss,
            point.accuracy,
            run.purpose,
            run.budget_factor,
            run.attempt,
            point.readings,
        )
        for study, run in _runs(files, every=every)
        for number, point in enumerate(run.result.curve)
    )
    return pd.DataFrame(rows, columns=list(POINT_COLUMNS)).astype({"accuracy": float})


def _runs(files: Sequence[FileResults], *, every: bool) -> Iterator[tuple[StudyResults, RunRecord]]:
    for file in files:
        for study in file.studies:
            for run in (*study.runs, *(study.confirmations if every else ()), *(study.superseded if every else ())):
                yield study, run


def _value(study: StudyResults, run: RunRecord) -> float | None:
    known = study.untrained_confirming if run.purpose == "confirm" else study.untrained
    return run_objective(run.result, study.objective, untrained=known.get(run.repeat))


def _trials(files: Sequence[FileResults]) -> Iterator[tuple[tuple[str, ...], TrialResults]]:
    for file in files:
        for study in file.studies:
            for trial in study.trials:
                yield _names(study), trial


def _names(study: StudyResults) -> tuple[str, ...]:
    record = study.record
    return (record.file_name, record.study, record.problem, record.optimizer)
