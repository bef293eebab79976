"""Which optimizer, and how sure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kftune.analysis.ranking.targets import times_to_target
from kftune.analysis.ranking.verdict import ProblemVerdict, VerdictRow, verdicts
from kftune.dashboard.figures.verdict import plot_verdict
from kftune.dashboard.panels._entry import PanelEntry
from kftune.dashboard.panels._subject import Subject, nothing_yet
from kftune.dashboard.parts import DASH, Cell, Missing, Panel, Part, Table, name_of, plots
from kftune.wording import loss, number, outcome_title, percent, trials_made

__all__ = ["ENTRIES"]

_CONFIRM = "`kftune confirm` trains the best of every optimizer again on fresh seeds"


def verdict_panel(subject: Subject) -> Panel:
    """Optimizers by confirmed loss, and how often one beats another."""
    (verdict,) = [found for found in verdicts(subject.file) if found.problem == subject.problem]
    has_result = any(row.trial is not None for row in verdict.rows)
    if not has_result:
        sentence = "Optimizers by loss, once they have one."
    elif verdict.is_confirmed:
        sentence = (
            "The confirmed loss is that of the chosen configuration on fresh seeds, with its 95 % interval; the tuned "
            "loss is what the search saw on the seeds it chose by, and promises too much: the two are never "
            "ranked together. In the figure, filled marks with their interval are confirmed, open marks are tuned."
        )
    else:
        sentence = (
            "Nothing is confirmed: these are tuned losses, the lowest of many on the very seeds they were chosen by, "
            f"and no more than a hint; {_CONFIRM}."
        )
    parts: list[Part] = [Missing(nothing_yet(subject))]
    if has_result:
        figure = plot_verdict(subject.file, subject.problem, styles=subject.styles)
        parts = [
            _table(subject, verdict),
            plots([(figure, f"confirmed and tuned losses on {subject.problem}")], missing=""),
            *_pairs(verdict),
        ]
    return Panel(key="verdict", title="Verdict", sentence=sentence, parts=parts)


def _table(subject: Subject, verdict: ProblemVerdict) -> Table:
    times = {
        found.study: (found.time, found.target)
        for found in times_to_target(subject.file)
        if found.problem == subject.problem
    }
    target = next((target for _, target in times.values()), None)
    confirmed = (
        [Cell(f"confirmed {subject.what}"), Cell("95 % interval"), Cell("seeds")] if verdict.is_confirmed else []
    )
    header = [
        Cell("place"),
        Cell("optimizer", "text"),
        *confirmed,
        Cell(f"tuned {subject.what}"),
        Cell("seconds"),
        Cell("updates"),
        Cell(
            "seconds to target" if target is None else f"seconds to {loss(target)}",
            title="train seconds until the mean over the best configuration's runs is at or below this loss, the upper "
            f"median of the optimizers' {'confirmed ' if verdict.is_confirmed else ''}losses",
        ),
        Cell("trials"),
        Cell("runs that failed", "text"),
        Cell("provisional", "text"),
    ]
    rows = [_row(row, times, show_confirmed=verdict.is_confirmed) for row in verdict.rows]
    return Table(header, rows)


def _row(row: VerdictRow, times: Mapping[str, tuple[float, float]], *, show_confirmed: bool) -> list[Cell]:
    time = times.get(row.study, (math.nan, 0.0))[0]
    failed = [*_failed(row.outcomes, ""), *_failed(row.confirm_outcomes, " in confirming runs")]
    has_result = row.trial is not None
    return [
        DASH if row.rank is None else Cell(str(row.rank)),
        name_of(row.optimizer),
        *(_confirmed(row) if show_confirmed else ()),
        DASH if row.tuned is None else Cell(loss(row.tuned), "number" if row.is_confirmed else "main"),
        Cell(number(row.train_seconds)) if has_result else DASH,
        Cell(f"{row.updates:.0f}") if has_result else DASH,
        DASH if math.isnan(time) else Cell("never", "none") if math.isinf(time) else Cell(number(time, 3)),
        Cell(trials_made([(row.n_finished, row.n_trials)])),
        Cell(", ".join(failed) or "none", "text wrap" if failed else "none text"),
        Cell(_provisional(row) or "no", "text wrap" if row.is_provisional else "none text"),
    ]


def _confirmed(row: VerdictRow) -> list[Cell]:
    if not row.is_confirmed:
        return [Cell("not confirmed", "none"), DASH, DASH]
    interval = DASH if row.interval is None else Cell(f"{loss(row.interval[0])} to {loss(row.interval[1])}")
    if not row.n_uncounted:
        return [Cell(loss(row.loss), "main"), interval, Cell(str(row.n_seeds))]
    title = f"it crashed on {row.n_uncounted} more, which say nothing about it"
    return [
        Cell(loss(row.loss), "main"),
        interval,
        Cell(f"{row.n_seeds} of {row.n_seeds + row.n_uncounted}", title=title),
    ]


def _failed(outcomes: Mapping[str, int], where: str) -> list[str]:
    return [f"{n} {outcome_title(name)}{where}" for name, n in outcomes.items() if name != "completed"]


def _provisional(row: VerdictRow) -> str:
    """Why a row may still change; empty if nothing says so."""
    reasons = [f"best at the {edge.edge} edge of {edge.sampled_name}" for edge in row.edges if edge.is_provisional]
    if row.n_finished < row.n_trials:
        reasons.append("not all trials made")
    if row.better_trial is not None:
        reasons.append(f"trial {row.better_trial} is better in the search and not confirmed")
    return ", ".join(reasons)


def _pairs(verdict: ProblemVerdict) -> list[Part]:
    """P(row beats column), and the differences that are there beyond the noise."""
    matrix = verdict.matrix
    if matrix is None and len(verdict.rows) < 2:
        return []
    if matrix is None:
        return [
            Missing(
                f"How often one optimizer beats another is known once two of them are confirmed: {_CONFIRM}, which all "
                "of them share."
            )
        ]
    found = {(pair.first, pair.second): pair for pair in verdict.comparisons}
    header = [Cell("row beats column", "text"), *(Cell(name, optimizer=name) for name in matrix.optimizers)]
    rows = []
    for name, cells in zip(matrix.optimizers, matrix.cells, strict=True):
        row = [name_of(name)]
        for other, cell in zip(matrix.optimizers, cells, strict=True):
            if cell is None:
                row.append(DASH)
                continue
            pair = found.get((name, other)) or found.get((other, name))
            is_sure = pair is not None and pair.is_different
            title = f"on {cell.n_seeds} common seeds; 95 %: {percent(cell.interval[0])} to {percent(cell.interval[1])}"
            if pair is not None:
                title += f"; paired difference: p = {number(pair.p_holm, 2)} after Holm's correction"
            text = f"{percent(cell.probability)}{' *' if is_sure else ''}"
            row.append(Cell(text, "main" if is_sure else "number", shade=_shade(cell.probability), title=title))
        rows.append(row)
    note = "on a fresh seed; * the two differ at 5 % by a paired test over common seeds, corrected for all pairs (Holm)"
    return [Table(header, rows, caption="How often one beats another", note=note)]


def _shade(probability: float) -> float:
    return 0.45 * max(0.0, 2 * probability - 1)


ENTRIES = (
    PanelEntry(
        name="verdict",
        summary="which optimizer is best, and how sure that is",
        scope="problem",
        place=10,
        make=verdict_panel,
    ),
)
