"""The best configurations, and what each hyperparameter does."""

from __future__ import annotations

from collections.abc import Sequence

from kftune.analysis.stored.results import StudyResults
from kftune.analysis.tuning.best import BestConfiguration, StudyBest, best_of_study
from kftune.analysis.tuning.gate import HuggedEdge, hugged_edges
from kftune.dashboard.figures.hyperparameters import (
    MOST_LINES,
    map_pairs,
    plot_map,
    plot_parallel_coordinates,
    plot_slices,
)
from kftune.dashboard.figures.importance import importances, plot_importance
from kftune.dashboard.panels._entry import PanelEntry
from kftune.dashboard.panels._subject import TOP, Subject, nothing_yet
from kftune.dashboard.parts import DASH, Cell, Choice, Chooser, Figure, Missing, Panel, Part, Plots, Table
from kftune.wording import loss, number, outcome_title

__all__ = ["ENTRIES"]


def hyperparameters_panel(subject: Subject) -> Panel:
    """Tables like the thesis' 1 to 3, slices, parallel coordinates, importances and maps of each optimizer."""
    choices = [
        Choice(study.record.optimizer, _of_optimizer(subject, study), is_optimizer=True) for study in subject.studies
    ]
    return Panel(
        key="hyperparameters",
        title="Hyperparameters",
        sentence="Filled marks are an optimizer's best tenth, at least three (crosses and the like are "
        "failures); dotted lines are the edges of the search box: where the best crowd at an edge, the box was too "
        "small. The values of the best are those of the search: they were chosen for being low on these very seeds."
        + (" Of many trials only a part is drawn." if subject.most_trials > MOST_LINES else ""),
        parts=[Chooser(f"{subject.file.name}/{subject.problem}/hyperparameters", "optimizer", choices)],
    )


def _of_optimizer(subject: Subject, study: StudyResults) -> list[Part]:
    name, style = study.record.optimizer, subject.styles[study.record.optimizer]
    parts: list[Part] = [_best_table(best_of_study(study, top=TOP), subject.what)]
    edges = [edge for edge in hugged_edges(study) if edge.is_provisional]
    if edges:
        parts.append(_edges_table(edges))
    slices = plot_slices(study, style)
    if slices is None:
        return [*parts, Missing(nothing_yet(subject))]
    parts.append(Plots([Figure(slices, f"{subject.what} of {name} by hyperparameter")]))
    parallel = plot_parallel_coordinates(study)
    if parallel is not None:
        parts.append(Plots([Figure(parallel, f"parallel coordinates of {name}")]))
    found = importances(study, of=len(subject.file.studies))
    importance = plot_importance(study, style, found)
    small = [] if importance is None else [Figure(importance, f"importance of {name}'s hyperparameters")]
    for pair in map_pairs(study):
        drawn = plot_map(study, pair)
        if drawn is not None:
            small.append(Figure(drawn, f"{name}: {pair[0]} and {pair[1]}"))
    if small:
        parts.append(Plots(small))
    if importance is None:
        parts.append(Missing("Importances need 8 settled trials with different values."))
    return parts


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
    params = [Cell(number(best.params[name])) if name in best.params else DASH for name in searched]
    return [
        Cell(str(best.rank)),
        Cell(loss(best.value), "main"),
        Cell(spread),
        *params,
        Cell(f"{best.updates:.0f}"),
        Cell(str(best.trial)),
        Cell(", ".join(f"{n} {outcome_title(outcome)}" for outcome, n in best.outcomes.items()), "text"),
    ]


def _edges_table(edges: Sequence[HuggedEdge]) -> Table:
    header = [
        Cell("hyperparameter", "text"),
        Cell("edge", "text"),
        Cell("of the best trials there"),
        Cell("box"),
        Cell("try"),
        Cell("note", "text"),
    ]
    rows = []
    for edge in edges:
        wider = "–" if edge.wider is None else f"{number(edge.wider[0])} to {number(edge.wider[1])}"
        rows.append(
            [
                Cell(edge.dimension, "text"),
                Cell(edge.edge, "text"),
                Cell(f"{round(edge.share * edge.n_best)} of {edge.n_best}"),
                Cell(f"{number(edge.box[0])} to {number(edge.box[1])}"),
                Cell(wider, "main"),
                Cell(edge.note, "text"),
            ]
        )
    return Table(
        header, rows, caption="Provisional: the best trials hug an edge of the box", note="`--widen` goes on with it"
    )


ENTRIES = (
    PanelEntry(
        name="hyperparameters",
        summary="the best configurations, and what each hyperparameter does",
        scope="problem",
        place=60,
        make=hyperparameters_panel,
    ),
)
