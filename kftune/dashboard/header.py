"""The head of the page: what was run on what, how far it is, and where the seconds went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kftune.analysis.stored.results import FileResults, n_random
from kftune.analysis.stored.status import FileStatus, Ledger, file_statuses
from kftune.wording import clock_time, duration, number, objective_title, percent, trials_made

__all__ = ["Fact", "Header", "Share", "make_header"]


@dataclass(frozen=True)
class Fact:
    """A name and what stands behind it."""

    name: str
    value: str


@dataclass(frozen=True)
class Share:
    """A part of all seconds: its kind, share in percent, seconds in words."""

    kind: str
    name: str
    percent: float
    text: str


@dataclass(frozen=True)
class Header:
    """What stands above the panels of one study file.

    Attributes:
        state: e.g. ``"complete"``.
        is_complete: whether every study has its trials.
        facts: in the order shown.
        shares: of all slot-seconds, largest kinds first in the order of a run; empty without a session.
        ledger_note: what the bar is a bar of.
    """

    state: str
    is_complete: bool
    facts: Sequence[Fact]
    shares: Sequence[Share]
    ledger_note: str


def make_header(file: FileResults) -> Header:
    """The header of one study file."""
    (status,) = file_statuses([file])
    made = trials_made((study.n_finished, study.n_trials) for study in status.studies)
    state = "complete" if status.is_complete else f"{made} trials"
    shares = _shares(status.ledger)
    return Header(
        state=state,
        is_complete=status.is_complete,
        facts=[fact for fact in _facts(file, status) if fact.value],
        shares=shares,
        ledger_note=_ledger_note(status) if shares else "",
    )


def _facts(file: FileResults, status: FileStatus) -> list[Fact]:
    config = file.config
    n_runs = sum(study.n_runs for study in status.studies)
    last = file.studies[-1]
    n_at_random = 0 if any(trial.trial.is_from_elsewhere for trial in last.trials) else n_random(last.record)
    startup = f", {n_at_random} of them at random" if 0 < n_at_random < status.studies[0].n_trials else ""
    return [
        Fact("problems", ", ".join(file.problems)),
        Fact("optimizers", ", ".join(file.optimizers)),
        Fact("budget of a run", _budget(config.get("budget") or {})),
        Fact("trials per optimizer", f"{status.studies[0].n_trials}{startup}"),
        Fact("repeats", str(config.get("repeats", ""))),
        Fact("sampler", _sampler(config.get("sampler"))),
        Fact("objective", objective_title(file.objective)),
        Fact("seed", str(config.get("seed", ""))),
        Fact("runs made", str(n_runs)),
        Fact("ran", _when(status)),
        Fact("host", ", ".join(_distinct(session.host for session in file.sessions))),
        Fact("devices", _devices(file)),
        Fact("versions", _versions(file)),
    ]


def _budget(budget: Mapping[str, Any]) -> str:
    if budget.get("seconds") is not None:
        return f"{number(float(budget['seconds']))} s of training"
    return f"{budget['updates']} updates" if budget.get("updates") is not None else ""


def _sampler(sampler: Any) -> str:
    if not isinstance(sampler, Mapping):
        return str(sampler or "")
    options = ", ".join(f"{name}: {value}" for name, value in sampler.items() if name != "name")
    return f"{sampler.get('name', '')}{f' ({options})' if options else ''}"


def _when(status: FileStatus) -> str:
    if status.started_at is None:
        return "not yet"
    sessions = f", {status.n_sessions} sessions" if status.n_sessions > 1 else ""
    end = f" to {clock_time(status.ended_at)}" if status.ended_at is not None else ", end not stored"
    return f"{clock_time(status.started_at)}{end}{sessions}"


def _devices(file: FileResults) -> str:
    """The machine's names for its devices, from the runs; slots where no run is."""
    named = _distinct(
        f"{run.device} ({run.result.device_name})" if run.result.device_name else run.device
        for study in file.studies
        for run in study.runs
    )
    slots = _distinct(device for session in file.sessions for device in session.devices)
    return ", ".join(named or slots)


def _versions(file: FileResults) -> str:
    return ", ".join(_distinct(f"{name} {v}" for session in file.sessions for name, v in session.versions.items()))


def _distinct(texts: Any) -> list[str]:
    return list(dict.fromkeys(texts))


def _shares(ledger: Ledger) -> list[Share]:
    parts = [
        ("train", "training", ledger.train_seconds),
        ("evaluation", "evaluation", ledger.evaluation_seconds),
        ("setup", "set-up and warm-up", ledger.setup_seconds + ledger.warmup_seconds),
        ("sampling", "sampling", ledger.sampling_seconds),
        ("lost", "lost or made again", ledger.lost_seconds),
        ("start", "starting workers", ledger.worker_start_seconds),
        ("overhead", "everything else", max(0.0, ledger.overhead_seconds - ledger.sampling_seconds)),
    ]
    if ledger.slot_seconds <= 0:
        return []
    total = sum(seconds for _, _, seconds in parts)
    return [
        Share(kind, name, 100 * seconds / total, f"{percent(seconds / total)}, {duration(seconds)}")
        for kind, name, seconds in parts
    ]


def _ledger_note(status: FileStatus) -> str:
    ledger = status.ledger
    return (
        f"{duration(ledger.wall_seconds)} of wall time; the samplers took {duration(ledger.asking_seconds)} to propose "
        f"and {duration(ledger.telling_seconds)} to be told; {duration(ledger.storing_seconds)} of storing is in "
        "“everything else”."
    )
