"""Confirmed losses with their intervals, beside what the search promised."""

from __future__ import annotations

import math
from collections.abc import Mapping

import plotly.graph_objects as go

from kftune.analysis.ranking.verdict import VerdictRow, verdicts
from kftune.analysis.stored.results import FileResults
from kftune.dashboard.figures._entry import FigureEntry
from kftune.dashboard.figures.style import OptimizerStyle, axis, in_figure, layout, optimizer_styles, value_axis
from kftune.wording import loss, objective_title

__all__ = ["plot_verdict"]

_BEYOND = 1.6
_ARROW = 12


def plot_verdict(
    file: FileResults, problem: str, *, styles: Mapping[str, OptimizerStyle] | None = None
) -> go.Figure | None:
    """Confirmed loss (filled, with its 95 % interval) and tuned loss (open) of every optimizer, best on top.

    Args:
        file: with curves.
        problem: label of one of its problems.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None while no trial has ended well.
    """
    (verdict,) = [verdict for verdict in verdicts(file) if verdict.problem == problem]
    shown = [row for row in verdict.rows if row.trial is not None]
    losses = [v for row in shown for v in (row.loss, row.tuned) if v is not None]
    if not losses:
        return None
    # An interval of two seeds may be endless; it is cut off rather than let it flatten all others.
    low, high = min(losses), max(losses)
    ends = [end for row in shown for end in row.interval or () if low / _BEYOND <= end <= high * _BEYOND]
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    figure = go.Figure(
        layout=layout(
            x_title=objective_title(file.objective),
            y_title="optimizer",
            height=110 + 26 * len(shown),
            yaxis=axis("optimizer", type="category", autorange="reversed", automargin=True, showgrid=True),
        )
    )
    whole = [*losses, *ends]
    margin = 0.04 * math.log10(max(whole) / min(whole)) if min(whole) > 0 else 0.0
    x_axis = value_axis(whole, n_labels=8)
    if margin and "range" not in x_axis:
        x_axis["range"] = [math.log10(min(whole)) - margin, math.log10(max(whole)) + margin]
    edges = (10 ** x_axis["range"][0], 10 ** x_axis["range"][1]) if "range" in x_axis else (-math.inf, math.inf)
    for row in shown:
        figure.add_traces(_marks(row, styles[row.optimizer], edges))
    figure.update_xaxes(x_axis)
    figure.update_yaxes(categoryorder="array", categoryarray=[in_figure(row.optimizer) for row in shown])
    return figure


def _marks(row: VerdictRow, style: OptimizerStyle, edges: tuple[float, float]) -> list[go.Scatter]:
    """Tuned and confirmed loss with its interval; an arrow at an edge of the figure that the interval goes beyond."""
    name = in_figure(row.optimizer)
    marks = []
    if row.tuned is not None:
        marks.append(_mark(row, style, row.tuned, f"tuned {loss(row.tuned)}", is_open=True))
    if row.is_confirmed:
        text = f"confirmed {loss(row.loss)} on {row.n_seeds} fresh seeds"
        if row.n_uncounted:
            text += f" ({row.n_uncounted} more crashed)"
        if row.interval is not None:
            text += f", 95 %: {loss(row.interval[0])} to {loss(row.interval[1])}"
            (left, right), (low, high) = edges, row.interval
            sizes = [_ARROW if low < left else 0, _ARROW if high > right else 0]
            bar = go.Scatter(
                x=[max(left, low), min(right, high)],
                y=[name, name],
                mode="lines+markers",
                line={"color": style.colour, "width": 3},
                marker={"color": style.colour, "symbol": ["arrow-left", "arrow-right"], "size": sizes},
                cliponaxis=False,
                hoverinfo="skip",
                meta={"optimizer": row.optimizer},
                showlegend=False,
            )
            marks.append(bar)
        marks.append(_mark(row, style, row.loss, text, is_open=False))
    return marks


def _mark(row: VerdictRow, style: OptimizerStyle, x: float, text: str, *, is_open: bool) -> go.Scatter:
    return go.Scatter(
        x=[x],
        y=[in_figure(row.optimizer)],
        mode="markers",
        marker={
            "color": style.colour,
            "symbol": "circle-open" if is_open else "circle",
            "size": 9 if is_open else 11,
            "line": {"color": style.colour, "width": 1.5},
        },
        meta={"optimizer": row.optimizer, "study": row.study, "trial": row.trial, "more": text},
        showlegend=False,
    )


ENTRIES = (
    FigureEntry(
        name="verdict",
        scope="problem",
        sentence="confirmed loss of every optimizer with its 95 % interval, and the tuned loss",
        place=10,
        plot=lambda r: plot_verdict(r.file, r.problem, styles=r.styles),
    ),
)
