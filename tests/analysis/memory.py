"""Results without a database, for simulations: a study from its trials' losses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kftune.analysis.stored.results import FileResults, StudyResults, TrialResults
from kftune.results import CurvePoint, Outcome, RunResult
from kftune.storage.records import RunRecord, TrialRecord
from tests.storage.builders import run_record, session_record, study_record

UNTRAINED = 10.0
SPACE = {"dimensions": {"lr": {"kind": "float", "low": 1e-4, "high": 1.0, "log": True}}, "fixed": {}}


def run(
    loss: float | None, *, trial: int = 0, repeat: int = 0, curve: Sequence[tuple[float, float]] = (), **other: Any
) -> RunRecord:
    """A run of 2 seconds and 20 updates that ends at ``loss`` (None: it crashed), or goes through (seconds, loss)."""
    points = [(0.0, UNTRAINED), *(curve or ([] if loss is None else [(2.0, loss)]))]
    made = RunResult(
        outcome=other.pop("outcome", Outcome.CRASHED if loss is None else Outcome.COMPLETED),
        curve=tuple(
            CurvePoint(train_seconds=at, update=round(10 * at), train_loss=value / 2, test_loss=value)
            for at, value in points
        ),
        train_seconds=points[-1][0],
        updates=round(10 * points[-1][0]),
        examples=640 * round(10 * points[-1][0]),
        **{name: other.pop(name) for name in ("phase_seconds", "overshoot_seconds", "calibration") if name in other},
    )
    return run_record(1, trial, repeat, result=made, **other)


def trial(
    number: int, losses: Sequence[float | None], *, params: Mapping[str, Any] | None = None, **other: Any
) -> TrialResults:
    """A settled trial whose runs end at ``losses``."""
    params = {"lr": 0.01} if params is None else dict(params)
    known = [loss for loss in losses if loss is not None]
    value = sum(known) / len(known) if known and len(known) == len(losses) else None
    record = TrialRecord(
        number=number,
        state=other.pop("state", "fail" if value is None else "complete"),
        value=other.pop("value", value),
        params=params,
        datetime_start=None,
        datetime_complete=None,
        is_enqueued=other.pop("is_enqueued", False),
    )
    runs = other.pop("runs", None) or [run(loss, trial=number, repeat=r) for r, loss in enumerate(losses)]
    return TrialResults(
        trial=record,
        runs=tuple(replace(made, params=params) for made in runs),
        run_values=tuple(losses),
        is_startup=other.pop("is_startup", False),
        repeats=other.pop("repeats", len(losses)),
    )


def study(
    trials: Sequence[TrialResults],
    *,
    problem: str = "digits",
    optimizer: str = "kfac",
    file_name: str = "demo",
    confirmed: Mapping[int, Sequence[float | None]] | None = None,
    space: Mapping[str, Any] = SPACE,
    config: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    n_train: int | None = None,
    **other: Any,
) -> StudyResults:
    """A study of these trials; ``confirmed`` are the losses of confirming runs by trial."""
    name = f"{file_name}/{problem}/{optimizer}"
    record = study_record(
        file_name,
        problem,
        optimizer,
        space=space,
        n_trials=len(trials),
        n_train=n_train,
        config={"name": file_name, "repeats": 2, "budget": {"seconds": 2.0}} | dict(config or {}),
        identity={"problem": {"name": problem, "args": {}}, "optimizer": optimizer} | dict(identity or {}),
    )
    confirming = [
        run(loss, trial=number, repeat=repeat, study=name, purpose="confirm", seed=900 + repeat)
        for number, losses in (confirmed or {}).items()
        for repeat, loss in enumerate(losses)
    ]
    return StudyResults(
        record=record,
        trials=tuple(trials),
        confirmations=(*confirming, *other.pop("confirmations", ())),
        untrained={0: UNTRAINED, 1: UNTRAINED},
        untrained_confirming=dict.fromkeys(range(20), UNTRAINED),
        **other,
    )


def file(*studies: StudyResults, name: str = "demo") -> FileResults:
    """One study file's results."""
    return FileResults(name=name, studies=studies, sessions=(session_record(id=1),), untrained={})
