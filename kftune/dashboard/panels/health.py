"""Whether to trust the numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import yaml

from kftune.analysis.stored.results import FileResults
from kftune.analysis.trust.coverage import StudyCoverage, study_coverages
from kftune.analysis.trust.health import Health, MachineReading, health
from kftune.dashboard.figures.machine import plot_machine
from kftune.dashboard.header import make_header
from kftune.dashboard.panels._entry import PanelEntry
from kftune.dashboard.panels._subject import Subject
from kftune.dashboard.parts import DASH, Bar, Cell, Missing, Panel, Part, Source, Table, name_of, plots
from kftune.results import Outcome
from kftune.storage.records import Purpose
from kftune.wording import clock_time, duration, number, outcome_title, percent, trials_made

__all__ = ["ENTRIES"]

_MOST_FLAGGED, _MOST_MESSAGES, _MESSAGE_LENGTH = 30, 20, 300


def health_panel(subject: Subject) -> Panel:
    """Outcomes, the machine's speed, overshoot, messages, the ledger, sessions and the study file."""
    file = subject.file
    found = health(file)
    header = make_header(file)
    drift = plot_machine(file, styles=subject.styles)
    parts: list[Part] = [_outcomes(file, found), *_confirming_outcomes(found)]
    if header.shares:
        parts.append(Bar(header.shares, f"Where the seconds went: {header.ledger_note}"))
    parts.append(
        plots(
            [(drift, "time of the reference workload during every run")],
            missing="No run was calibrated: runs made from now on with a budget in seconds measure the machine's "
            "speed.",
            marks=file.optimizers,
        )
    )
    if found.flagged:
        parts.append(_flagged(found.flagged))
    messages = _messages(file)
    if messages is not None:
        parts.append(messages)
    parts.append(_coverage(study_coverages(file)))
    parts.append(_sessions(file))
    text = yaml.safe_dump(dict(file.config), sort_keys=False, allow_unicode=True, width=100)
    parts.append(Source("The study file, with every default", text))
    return Panel(
        key="health",
        title="Run health",
        sentence="A run that diverged, ran out of memory or was timed out counts as the untrained model; a crashed one "
        "says nothing about its configuration. Runs during which the machine was off by more than the tolerance are "
        "flagged (crosses).",
        parts=parts,
    )


def _outcomes(file: FileResults, found: Health) -> Table:
    counts = [Counter(run.result.outcome for run in study.runs) for study in file.studies]
    shown = [outcome for outcome in Outcome if outcome is not Outcome.PRUNED or any(c[outcome] for c in counts)]
    header = [
        Cell("problem", "text"),
        Cell("optimizer", "text"),
        Cell("trials"),
        *(Cell(outcome_title(outcome.value)) for outcome in shown),
        Cell("confirming runs"),
        Cell("not repeated", title="trials whose first run was hopeless (racing)"),
        Cell("flagged"),
        Cell("made again"),
        Cell("overshoot (ms)", title="mean and largest train time past the budget"),
        Cell("updates per second"),
        Cell("peak memory"),
    ]
    rows = []
    for study, count, its in zip(file.studies, counts, found.studies, strict=True):
        record = study.record
        rows.append(
            [
                Cell(record.problem, "text"),
                name_of(record.optimizer),
                Cell(trials_made([(len(study.finished), record.n_trials)])),
                *(_count(count[outcome]) for outcome in shown),
                _count(sum(its.confirm_outcomes.values())),
                _count(its.n_raced),
                _count(its.n_flagged),
                _count(its.n_superseded),
                _overshoot(its.mean_overshoot, its.max_overshoot),
                _rate(sum(run.result.updates for run in study.runs), sum(r.result.train_seconds for r in study.runs)),
                _memory([run.result.peak_memory_bytes for run in study.runs]),
            ]
        )
    return Table(header, rows, caption="How the runs ended")


def _confirming_outcomes(found: Health) -> list[Table]:
    """None where all completed: then the table of all runs says how many there are."""
    happened = {outcome for study in found.studies for outcome in study.confirm_outcomes}
    if happened <= {Outcome.COMPLETED.value}:
        return []
    shown = [outcome.value for outcome in Outcome if outcome is Outcome.COMPLETED or outcome.value in happened]
    header = [Cell("problem", "text"), Cell("optimizer", "text"), *(Cell(outcome_title(name)) for name in shown)]
    rows = [
        [
            Cell(study.problem, "text"),
            name_of(study.optimizer),
            *(_count(study.confirm_outcomes.get(name, 0)) for name in shown),
        ]
        for study in found.studies
        if study.confirm_outcomes
    ]
    return [Table(header, rows, caption="How the confirming runs ended")]


def _count(n: int) -> Cell:
    return Cell(str(n), "number" if n else "none")


def _overshoot(mean: float | None, largest: float | None) -> Cell:
    if mean is None or largest is None:
        return DASH
    return Cell(f"{number(1000 * mean, 2)}, at most {number(1000 * largest, 2)}")


def _rate(updates: int, seconds: float) -> Cell:
    return Cell(number(updates / seconds, 3)) if seconds > 0 else DASH


def _memory(peaks: Sequence[int | None]) -> Cell:
    known = [peak for peak in peaks if peak is not None]
    return Cell(f"{number(max(known) / 2**20, 3)} MiB") if known else DASH


def _flagged(readings: Sequence[MachineReading]) -> Table:
    header = [
        Cell("study", "text"),
        Cell("trial"),
        Cell("repeat"),
        Cell("attempt"),
        Cell("×\u00a0usual"),
        Cell("began", "text"),
        Cell("device", "text"),
        Cell("result", "text"),
    ]
    worst = sorted(readings, key=lambda reading: -abs(reading.slowdown - 1))[:_MOST_FLAGGED]
    rows = [
        [
            Cell(reading.study, "text"),
            Cell(str(reading.trial)),
            Cell(str(reading.repeat)),
            Cell(str(reading.attempt)),
            Cell(f"{reading.slowdown:.2f}", "main"),
            Cell(clock_time(reading.started_at), "text"),
            Cell(reading.device, "text"),
            Cell("made again" if reading.is_superseded else "counts", "text"),
        ]
        for reading in worst
    ]
    more = f"the {len(rows)} farthest off of {len(readings)}" if len(readings) > len(rows) else ""
    return Table(header, rows, caption="Flagged runs", note=more)


def _messages(file: FileResults) -> Table | None:
    """What failed runs said, the most frequent first; the last line of a traceback is what it says."""
    said: Counter[tuple[str, Purpose, str, str]] = Counter()
    for study in file.studies:
        for run in (*study.runs, *study.confirmations):
            lines = run.result.message.strip().splitlines()
            if lines:
                said[(study.record.study, run.purpose, run.result.outcome.value, lines[-1][:_MESSAGE_LENGTH])] += 1
    if not said:
        return None
    header = [
        Cell("study", "text"),
        Cell("purpose", "text"),
        Cell("outcome", "text"),
        Cell("runs"),
        Cell("message", "text"),
    ]
    rows = [
        [
            Cell(study, "text"),
            Cell(purpose, "text"),
            Cell(outcome_title(outcome), "text"),
            Cell(str(n)),
            Cell(line, "text wrap"),
        ]
        for (study, purpose, outcome, line), n in said.most_common(_MOST_MESSAGES)
    ]
    more = f"the {len(rows)} most frequent of {len(said)} messages" if len(said) > len(rows) else ""
    return Table(header, rows, caption="What failed runs said", note=more)


def _coverage(found: Sequence[StudyCoverage]) -> Table:
    """How much of each network had the method's own rule, and how much what the method does to the rest."""
    header = [
        Cell("problem", "text"),
        Cell("optimizer", "text"),
        Cell("parameters"),
        Cell("share of them, by what the optimizer did to them", "text"),
    ]
    rows = [
        [
            Cell(study.problem, "text"),
            name_of(study.optimizer),
            DASH if study.n_parameters is None else Cell(str(study.n_parameters)),
            DASH if not study.shares else Cell(_shares(study), "text wrap"),
        ]
        for study in found
    ]
    differs = "mean over the runs, where it was not the same in all" if any(study.differs for study in found) else ""
    return Table(header, rows, caption="What was done to the parameters", note=differs)


def _shares(study: StudyCoverage) -> str:
    return "; ".join(f"{percent(share)} {treatment}" for treatment, share in study.shares.items())


def _without_directories(command: str) -> str:
    """Pages are passed on: a file's directory is nobody else's business."""
    return re.sub(r"[^\s'\"=]*/(?=[^\s/])", "", command)


def _sessions(file: FileResults) -> Part:
    if not file.sessions:
        return Missing("No session is stored: nothing was run yet.")
    header = [
        Cell("session"),
        Cell("began", "text"),
        Cell("ended", "text"),
        Cell("wall time"),
        Cell("host", "text"),
        Cell("devices", "text"),
        Cell("command", "text"),
        Cell("versions", "text"),
    ]
    rows = [
        [
            Cell(str(session.id)),
            Cell(clock_time(session.started_at), "text"),
            Cell("not stored" if session.ended_at is None else clock_time(session.ended_at), "text"),
            Cell(duration(session.ledger.get("wall", 0.0))),
            Cell(session.host, "text"),
            Cell(", ".join(session.devices), "text"),
            Cell(_without_directories(session.command), "text wrap"),
            Cell(", ".join(f"{name} {version}" for name, version in session.versions.items()), "text wrap"),
        ]
        for session in file.sessions
    ]
    return Table(header, rows, caption="Sessions")


ENTRIES = (
    PanelEntry(
        name="health",
        summary="whether to trust the numbers",
        scope="file",
        place=20,
        make=health_panel,
    ),
)
