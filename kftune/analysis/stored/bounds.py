"""Stored numbers within what sums, squares, ratios and axes can bear, whatever somebody's loss or clock gave.

A double holds 1e308, and not its square or the sum of two of them. No loss of that size says more than infinity does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kftune.results import CurvePoint, RunResult
from kftune.storage.records import RunRecord, SessionRecord, TrialRecord

__all__ = ["bounded_runs", "bounded_sessions", "bounded_trials"]

_LARGEST, _SMALLEST = 1e100, 1e-100
_LONGEST = 1e12  # seconds

_SECONDS = ("train_seconds", "overshoot_seconds", "evaluation_seconds", "setup_seconds", "warmup_seconds")


def bounded_runs(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """The same runs: losses beyond 1e100 are infinite, within 1e-100 of 0 are 0; seconds are from 0 to 1e12."""
    return [run if _is_bounded(run) else _bounded(run) for run in runs]


def bounded_trials(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The same trials: an infinite value is none, as of a trial that has failed."""
    return [trial if trial.value is None else replace(trial, value=_finite(_value(trial.value))) for trial in trials]


def bounded_sessions(sessions: Sequence[SessionRecord]) -> list[SessionRecord]:
    """The same sessions, their seconds from 0 to 1e12."""
    return [replace(s, ledger={name: _span(seconds) for name, seconds in s.ledger.items()}) for s in sessions]


def _is_bounded(run: RunRecord) -> bool:
    result = run.result
    points = [value for p in result.curve for value in (p.train_loss, p.test_loss, p.accuracy) if value is not None]
    seconds = [run.wall_seconds, *(getattr(result, name) for name in _SECONDS)]
    seconds += [p.train_seconds for p in result.curve]
    return all(_SMALLEST <= abs(v) <= _LARGEST or v == 0 for v in points) and all(0 <= s <= _LONGEST for s in seconds)


def _bounded(run: RunRecord) -> RunRecord:
    result: RunResult = run.result
    seconds: dict[str, Any] = {name: _span(getattr(result, name)) for name in _SECONDS}
    curve = tuple(_point(point) for point in result.curve)
    return replace(run, wall_seconds=_span(run.wall_seconds), result=replace(result, curve=curve, **seconds))


def _point(point: CurvePoint) -> CurvePoint:
    return replace(
        point,
        train_seconds=_span(point.train_seconds),
        train_loss=_value(point.train_loss),
        test_loss=_value(point.test_loss),
        accuracy=None if point.accuracy is None else _value(point.accuracy),
    )


def _value(number: float) -> float:
    if abs(number) > _LARGEST:
        return math.copysign(math.inf, number)
    return 0.0 if abs(number) < _SMALLEST else number


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _span(seconds: float) -> float:
    return 0.0 if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST)
