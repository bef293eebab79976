"""The parts of the page: each has a heading, one sentence that says what to see, and figures or tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from kftune.analysis.best import BestConfiguration, StudyBest, best_of_study
from kftune.analysis.curves import Across
from kftune.analysis.results import FileResults
from kftune.dashboard.figures import plot_learning_curves, plot_sorted_losses
from kftune.dashboard.figures._style import OptimizerStyle
from kftune.dashboard.figures.learning_curves import measures
from kftune.dashboard.formatting import loss, number, objective_title, outcome_title
from kftune.training.results import Outcome

__all__ = ["Cell", "Figure", "Panel", "Table", "outcomes_panel", "problem_panels"]

_TOP = 4
_TITLES: Mapping[Across, str] = {"train_seconds": "against training time", "update": "against updates"}


@dataclass(frozen=True)
class Figure:
    """A Plotly figure and what it shows, in words, for those who do not see it."""

    figure: go.Figure
    label: str


@dataclass(frozen=True)
class Cell:
    """One cell of a table; ``kind`` is a CSS class: ``text``, ``number``, ``main`` or ``none`` (a zero, a dash)."""

    text: str
    kind: str = "number"


@dataclass(frozen=True)
class Table:
    """A table; ``optimizer`` gives its caption that optimizer's mark."""

    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    optimizer: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """One part of the page.

    Attributes:
        key: for links and tests, e.g. ``"sorted-losses"``.
        title: heading.
        sentence: what to see in it.
        figures: side by side, where there is room.
        tables: one after the other.
        empty: what to say when there is nothing to show.
        has_symbols: whether the meaning of the trials' markers is to be explained.
    """

    key: str
    title: str
    sentence: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    empty: str = ""
    has_symbols: bool = False


def problem_panels(file: FileResults, problem: str, styles: Mapping[str, OptimizerStyle]) -> list[Panel]:
    """The panels of one problem, in the order of the page."""
    return [
        _sorted_losses(file, problem, styles),
        _learning_curves(file, problem, styles),
        _best_configurations(file, problem),
    ]


def _sorted_losses(file: FileResults, problem: str, styles: Mapping[str, OptimizerStyle]) -> Panel:
    figure = plot_sorted_losses(file, problem, styles=styles)
    what = objective_title(file.objective)
    return Panel(
        key="sorted-losses",
        title=f"Sorted {what}{'es' if what.endswith('loss') else 's'}",
        sentence="A line that stays low far to the right belongs to an optimizer that works with many settings, not "
        "only with its luckiest; every trial that was started counts, those that failed too.",
        figures=_figures([(figure, f"sorted {what} of all trials on {problem}")]),
        empty=_nothing_yet(file, problem),
        has_symbols=True,
    )


def _learning_curves(file: FileResults, problem: str, styles: Mapping[str, OptimizerStyle]) -> Panel:
    drawn = [
        (
            plot_learning_curves(file, problem, across=across, measure=measure, top=_TOP, styles=styles),
            f"{measure.replace('_', ' ')} of the best configurations on {problem} {_TITLES[across]}",
        )
        for measure in measures(file, problem)
        for across in _TITLES
    ]
    return Panel(
        key="learning-curves",
        title="Learning curves of the best configurations",
        sentence="Left against seconds, right against updates: few but good steps show on the right, what they cost on "
        "the left. Thick: each optimizer's best configuration, mean and range over its repeats; "
        f"thin: the next {_TOP - 1}.",
        figures=_figures(drawn),
        empty=_nothing_yet(file, problem),
    )


def _figures(drawn: Iterable[tuple[go.Figure | None, str]]) -> list[Figure]:
    return [Figure(figure, label) for figure, label in drawn if figure is not None]


def _nothing_yet(file: FileResults, problem: str) -> str:
    n_finished = sum(len(study.finished) for study in file.of_problem(problem))
    if n_finished == 0:
        return "No trial has finished yet."
    return f"No run has ended well (finished trials: {n_finished})."


def _best_configurations(file: FileResults, problem: str) -> Panel:
    studies = [best_of_study(study, top=_TOP) for study in file.of_problem(problem)]
    return Panel(
        key="best-configurations",
        title="Best configurations",
        sentence="Each value is the lowest of many, on the very seeds it was chosen by: it promises a little too much.",
        tables=[_best_table(best, objective_title(file.objective)) for best in studies],
    )


def _best_table(best: StudyBest, what: str) -> Table:
    header = [
        Cell("rank"),
        Cell(what),
        Cell("over repeats"),
        *(Cell(name) for name in best.searched),
        Cell("updates"),
        Cell("trial"),
        Cell("runs", "text"),
    ]
    rows = [_best_row(configuration, best.searched) for configuration in best.configurations]
    return Table(header, rows, optimizer=best.optimizer, note=_best_note(best))


def _best_note(best: StudyBest) -> str:
    if best.configurations:
        fixed = ", ".join(f"{name} = {number(value)}" for name, value in best.fixed.items())
        return f"fixed: {fixed}" if fixed else ""
    return f"no run has ended well (trials: {best.n_finished})" if best.n_finished else "no trial yet"


def _best_row(best: BestConfiguration, searched: Sequence[str]) -> list[Cell]:
    values = best.run_values
    spread = f"{loss(min(values))} to {loss(max(values))}" if len(values) > 1 else "–"
    params = [Cell(number(best.params[name])) if name in best.params else Cell("–", "none") for name in searched]
    return [
        Cell(str(best.rank)),
        Cell(loss(best.value), "main"),
        Cell(spread),
        *params,
        Cell(f"{best.updates:.0f}"),
        Cell(str(best.trial)),
        Cell(", ".join(f"{n} {outcome_title(outcome)}" for outcome, n in best.outcomes.items()), "text"),
    ]


def outcomes_panel(file: FileResults) -> Panel:
    """How the runs of every study ended."""
    counts = [Counter(run.result.outcome for run in study.runs) for study in file.studies]
    shown = [outcome for outcome in Outcome if outcome is not Outcome.PRUNED or any(c[outcome] for c in counts)]
    header = [
        Cell("problem", "text"),
        Cell("optimizer", "text"),
        Cell("trials"),
        *(Cell(outcome_title(outcome.value)) for outcome in shown),
        Cell("updates per second"),
        Cell("peak memory"),
    ]
    rows = []
    for study, count in zip(file.studies, counts, strict=True):
        record = study.record
        rows.append(
            [
                Cell(record.problem, "text"),
                Cell(record.optimizer, "text"),
                Cell(f"{len(study.finished)} of {record.n_trials}"),
                *(Cell(str(count[outcome]), "number" if count[outcome] else "none") for outcome in shown),
                _rate(sum(run.result.updates for run in study.runs), sum(r.result.train_seconds for r in study.runs)),
                _memory([run.result.peak_memory_bytes for run in study.runs]),
            ]
        )
    return Panel(
        key="outcomes",
        title="How the runs ended",
        sentence="A run that diverged, ran out of memory or was timed out counts as the untrained model; a crashed one "
        "says nothing about its configuration.",
        tables=[Table(header, rows)],
    )


def _rate(updates: int, seconds: float) -> Cell:
    return Cell(number(updates / seconds, 3)) if seconds > 0 else Cell("–", "none")


def _memory(peaks: Sequence[int | None]) -> Cell:
    known = [peak for peak in peaks if peak is not None]
    return Cell(f"{number(max(known) / 2**20, 3)} MiB") if known else Cell("–", "none")
