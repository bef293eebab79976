"""What goes into the database and comes out of it: plain, frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from kftune.results import RunResult
from kftune.space import Value

__all__ = ["ELSEWHERE_KEY", "Purpose", "RunRecord", "SessionRecord", "StudyRecord", "TrialRecord"]


ELSEWHERE_KEY = "kftune:from_elsewhere"
"""Optuna's user attribute of a trial that was taken over from a study with another search space."""

Purpose: TypeAlias = Literal["search", "confirm"]
"""Why a run was made: to find good hyperparameters, or to measure some on seeds that had no part in finding them."""


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """One (problem, optimizer) pair of a study file.

    Attributes:
        study: the Optuna study's name, ``<file name>/<problem>/<optimizer>``.
        file_name: the study file's ``name``.
        problem: label of the problem.
        optimizer: label of the optimizer.
        identity: everything that must not change between sessions of a study.
        config: the whole study file, resolved.
        space: the search space, as :meth:`kftune.space.Space.to_dict` gives it.
        n_trials: how many trials the study is to have.
        n_train: number of the problem's training examples; None where it is not known (an imported study).
    """

    study: str
    file_name: str
    problem: str
    optimizer: str
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    space: Mapping[str, Any]
    n_trials: int
    n_train: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished run.

    Attributes:
        study: name of its study.
        trial: Optuna's trial number, from 0.
        repeat: from 0.
        seed: of initial weights and data order.
        params: resolved hyperparameters.
        session_id: the session that made it.
        started_at: aware, UTC.
        wall_seconds: from handing it to a worker to having its result.
        attempt: 1 unless earlier attempts were lost to the machine or superseded.
        device: slot it ran on, e.g. ``"cuda:0"``.
        result: what became of it.
        purpose: search, or confirm: such runs have seeds of their own and no part in their trial's value.
        budget_factor: multiple of the study's budget that it was given.
        superseded: it is to be made again, because the machine was disturbed; it counts for nothing but the seconds.
    """

    study: str
    trial: int
    repeat: int
    seed: int
    params: Mapping[str, Value]
    session_id: int
    started_at: datetime
    wall_seconds: float
    attempt: int
    device: str
    result: RunResult
    purpose: Purpose = "search"
    budget_factor: float = 1.0
    superseded: bool = False


@dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """One call of ``kftune run`` or ``resume``.

    Attributes:
        id: None before it is stored.
        file_name: the study file's ``name``.
        started_at: aware, UTC.
        ended_at: None while it runs, and for ever if it was killed.
        host: name of the machine.
        devices: one entry per slot.
        versions: package → version.
        command: what was typed.
        ledger: where the seconds went: ``wall``, ``asking``, ``telling``, ``storing``, ``worker_start``, ``busy``
            (workers' time in runs, summed over slots), and the count ``slots``.
    """

    id: int | None
    file_name: str
    started_at: datetime
    ended_at: datetime | None
    host: str
    devices: list[str]
    versions: Mapping[str, str]
    command: str
    ledger: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as Optuna holds it.

    Attributes:
        number: from 0.
        state: ``running``, ``complete``, ``fail``, ``pruned`` or ``waiting``.
        value: mean objective of its runs; None while it runs and if it failed; the last reported one if it was pruned.
        params: sampled values by sampled name (``"damping/lr"``).
        datetime_start: local time of the machine that ran it, without zone, as Optuna stores it.
        datetime_complete: likewise; None while it runs.
        is_enqueued: its configuration was given, at least in part, and not proposed by the sampler.
        is_from_elsewhere: it was taken over from a study with another search space.
    """

    number: int
    state: str
    value: float | None
    params: Mapping[str, Value]
    datetime_start: datetime | None
    datetime_complete: datetime | None
    is_enqueued: bool = False
    is_from_elsewhere: bool = False
