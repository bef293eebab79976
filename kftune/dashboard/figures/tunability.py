"""How much tuning an optimizer needs: expected best of k, and the best found so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import plotly.graph_objects as go

from kftune.analysis.stored.results import FileResults
from kftune.analysis.tuning.anytime import best_so_far_curves
from kftune.analysis.tuning.best_of_k import BestOfK, best_of_k_curves
from kftune.dashboard.figures._arrays import floats, visible
from kftune.dashboard.figures._entry import FigureEntry
from kftune.dashboard.figures.style import OptimizerStyle, in_figure, layout, optimizer_styles, value_axis
from kftune.wording import objective_title, time_unit

__all__ = ["Spent", "plot_best_of_k", "plot_best_so_far"]

Spent: TypeAlias = Literal["trials", "spent_seconds"]
_MANY = 200
_X_TITLES: Mapping[Spent, str] = {"trials": "trials made", "spent_seconds": "wall time of all runs (h)"}


def plot_best_of_k(
    file: FileResults, problem: str, *, styles: Mapping[str, OptimizerStyle] | None = None
) -> go.Figure | None:
    """Loss to expect from the best of k random configurations, with its 95 % band.

    Args:
        file: with curves.
        problem: label of one of its problems.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None while no start-up trial has finished.
    """
    curves = [curve for curve in best_of_k_curves(file) if curve.problem == problem]
    if not curves:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    figure = go.Figure(
        layout=layout(
            x_title="random configurations tried, k", y_title=f"expected best {objective_title(file.objective)}"
        )
    )
    for curve in curves:
        figure.add_trace(_band(curve, styles[curve.optimizer], opacity=0.15 if len(curves) <= 6 else 0.05))
    for curve in curves:
        style = styles[curve.optimizer]
        figure.add_trace(
            go.Scatter(
                x=floats(curve.k),
                y=floats(curve.expected),
                mode="lines+markers",
                name=in_figure(curve.optimizer),
                meta={"optimizer": curve.optimizer},
                line={"color": style.colour, "dash": style.dash, "width": 2},
                marker={"color": style.colour, "symbol": style.symbol, "size": 5},
                hovertemplate=f"<b>{_in_template(curve.optimizer)}</b><br>best of %{{x}}: %{{y:.4g}}<extra></extra>",
            )
        )
    figure.update_yaxes(value_axis(value for curve in curves for value in curve.expected))
    figure.update_xaxes(_counts(max(curve.n for curve in curves)))
    return figure


def _counts(most: int) -> dict[str, Any]:
    """An axis of whole numbers from 1."""
    if most > 20:
        return {"type": "log", "dtick": "D2" if most < 500 else 1, "tickformat": "~g"}
    return {"dtick": 1 if most < 10 else 2, "tick0": 1, "range": [0.7, most + 0.3]}


def _in_template(text: str) -> str:
    """A name inside a hover template, where ``%{`` would begin a variable."""
    return in_figure(text).replace("%{", "%\u200b{")


def _band(curve: BestOfK, style: OptimizerStyle, *, opacity: float) -> go.Scatter:
    inside = [i for i, low in enumerate(curve.low) if not math.isnan(low)]
    return go.Scatter(
        x=floats([*(curve.k[i] for i in inside), *(curve.k[i] for i in reversed(inside))]),
        y=floats([*(curve.low[i] for i in inside), *(curve.high[i] for i in reversed(inside))]),
        fill="toself",
        fillcolor=style.colour,
        opacity=opacity,
        mode="none",
        hoverinfo="skip",
        showlegend=False,
        meta={"optimizer": curve.optimizer},
    )


def plot_best_so_far(
    file: FileResults, problem: str, *, against: Spent, styles: Mapping[str, OptimizerStyle] | None = None
) -> go.Figure | None:
    """The best value found so far, as a staircase.

    Args:
        file: curves are not needed.
        problem: label of one of its problems.
        against: trials made, or wall seconds of all the study's runs, those made again included.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None while no trial has ended well.
    """
    curves = [c for c in best_so_far_curves(file) if c.problem == problem and not all(map(math.isnan, c.best))]
    if not curves:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    scale, unit = 1.0, ""
    if against == "spent_seconds":
        scale, unit = time_unit(max(curve.spent_seconds[-1] for curve in curves))
    x_title = f"wall time of all runs ({unit})" if unit else _X_TITLES[against]
    figure = go.Figure(layout=layout(x_title=x_title, y_title=f"best {objective_title(file.objective)} so far"))
    for curve in curves:
        style = styles[curve.optimizer]
        x = [place / scale for place in getattr(curve, against)]
        known = [i for i, best in enumerate(curve.best) if not math.isnan(best)]
        ends = (known[0], known[-1])
        changes = [i for i in known if i in ends or curve.best[i] != curve.best[i - 1]]
        shown = visible([x[i] for i in changes], [curve.best[i] for i in changes], [0] * len(changes))
        kept = [changes[i] for i in shown]
        figure.add_trace(
            go.Scatter(
                x=floats(x[i] for i in kept),
                y=floats(curve.best[i] for i in kept),
                mode="lines" if len(kept) > 3 else "lines+markers",
                marker={"symbol": style.symbol},
                name=in_figure(curve.optimizer),
                meta={"optimizer": curve.optimizer},
                line={"color": style.colour, "dash": style.dash, "width": 2, "shape": "hv"},
                hovertemplate=f"<b>{_in_template(curve.optimizer)}</b><br>%{{y:.4g}} after %{{x:.4g}}<extra></extra>",
            )
        )
    figure.update_yaxes(value_axis(best for curve in curves for best in curve.best if not math.isnan(best)))
    most = max(getattr(curve, against)[-1] for curve in curves) / scale
    if max(curve.trials[-1] for curve in curves) > _MANY:
        first = min(getattr(curve, against)[0] for curve in curves) / scale
        figure.update_xaxes(value_axis([first, most]))
        return figure
    figure.update_xaxes(range=[0, 1.02 * most])
    if against == "trials" and most < 10:
        figure.update_xaxes(dtick=1)  # there is no half of a trial
    return figure


ENTRIES = (
    FigureEntry(
        name="best-of-k",
        scope="problem",
        sentence="loss to expect from the best of k random configurations",
        place=80,
        plot=lambda r: plot_best_of_k(r.file, r.problem, styles=r.styles),
    ),
    FigureEntry(
        name="best-so-far",
        scope="problem",
        sentence="best loss found against trials",
        place=90,
        plot=lambda r: plot_best_so_far(r.file, r.problem, against="trials", styles=r.styles),
    ),
    FigureEntry(
        name="best-so-far-seconds",
        scope="problem",
        sentence="best loss found against all seconds spent",
        place=100,
        plot=lambda r: plot_best_so_far(r.file, r.problem, against="spent_seconds", styles=r.styles),
    ),
)
