"""Where the best configurations lie, problem beside problem."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from kftune.analysis.ranking.targets import R_MAX, performance_profiles, times_to_target
from kftune.analysis.stored.results import FileResults
from kftune.analysis.tuning.spread import DimensionSpread, OptimizerSpread, optimizer_spreads
from kftune.dashboard.figures._arrays import floats
from kftune.dashboard.figures._entry import FigureEntry
from kftune.dashboard.figures.style import MUTED, OptimizerStyle, axis, in_figure, layout, optimizer_styles, value_axis
from kftune.wording import number

__all__ = ["plot_best_regions", "plot_performance_profiles", "shared_dimensions"]

_PROBLEM_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
_MARGIN = 1.03


def shared_dimensions(spreads: Sequence[OptimizerSpread]) -> list[str]:
    """Sampled names that some optimizer varied on two problems or more, in the order in which they come."""
    return list(
        dict.fromkeys(
            dimension.sampled_name
            for spread in spreads
            for dimension in spread.dimensions
            if len(dimension.regions) > 1
        )
    )


def plot_best_regions(
    file: FileResults,
    dimension: str,
    *,
    styles: Mapping[str, OptimizerStyle] | None = None,
    spreads: Sequence[OptimizerSpread] | None = None,
) -> go.Figure | None:
    """Each optimizer's best tenth in one hyperparameter: a bar from lowest to highest and the median, per problem.

    Args:
        file: the results of a study file with two problems or more.
        dimension: sampled name; see :func:`shared_dimensions`.
        styles: of the optimizers; by default by the order of the file's optimizers' names.
        spreads: from :func:`kftune.analysis.tuning.spread.optimizer_spreads`, if they are known already.

    Returns:
        None if nobody varied it on two problems.
    """
    found = optimizer_spreads([file]) if spreads is None else spreads
    shown = [
        (s.optimizer, d) for s in found for d in s.dimensions if d.sampled_name == dimension and len(d.regions) > 1
    ]
    if not shown:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    problems = list(file.problems)
    low, high = min(d.box[0] for _, d in shown), max(d.box[1] for _, d in shown)
    is_log = all(d.log for _, d in shown)
    names = [f"{in_figure(optimizer)}<br>spread {_spread(d)}" for optimizer, d in shown]
    figure = go.Figure(
        layout=layout(
            x_title="",
            y_title="",
            height=100 + max(40, 15 * len(problems) + 8) * len(shown),
            xaxis=axis(dimension) | _range(low, high, is_log=is_log),
            yaxis=axis("optimizer", tickvals=list(range(len(shown))), ticktext=names, showgrid=False)
            | {"range": [len(shown) - 0.5, -0.5]},
        )
    )
    for row, (optimizer, spread) in enumerate(shown):
        if row:
            figure.add_hline(row - 0.5, line={"color": MUTED, "width": 0.5})
        figure.add_traces(_regions(optimizer, spread, row, problems, styles[optimizer]))
    return figure


def _spread(dimension: DimensionSpread) -> str:
    return "–" if math.isnan(dimension.spread) else number(dimension.spread, 2)


def _range(low: float, high: float, *, is_log: bool) -> dict[str, Any]:
    if not is_log or low <= 0:
        margin = 0.04 * (high - low)
        return {"range": [low - margin, high + margin]}
    bottom, top = math.log10(low), math.log10(high)
    margin = 0.04 * (top - bottom)
    ticks: dict[str, Any] = (
        {"dtick": "D2", "tickformat": "~g"}
        if top - bottom < 1.2
        else {"dtick": math.ceil((top - bottom) / 6), "tickformat": "~g"}
    )
    return {"type": "log", "range": [bottom - margin, top + margin]} | ticks


def _regions(
    optimizer: str, spread: DimensionSpread, row: int, problems: Sequence[str], style: OptimizerStyle
) -> list[go.Scatter]:
    drawn = []
    step = 0.7 / len(problems)
    for region in spread.regions:
        i = problems.index(region.problem)
        y = row + (i - (len(problems) - 1) / 2) * step
        low, high = (_value(spread, place) for place in (region.low, region.high))
        drawn.append(
            go.Scatter(
                x=floats([low, region.value, high]),
                y=[y, y, y],
                mode="lines+markers",
                line={"color": style.colour, "width": 2},
                marker={
                    "color": style.colour,
                    "symbol": _PROBLEM_SYMBOLS[i % len(_PROBLEM_SYMBOLS)],
                    "size": [0, 9, 0],
                    "opacity": [0, 1, 0],
                },
                meta={"optimizer": optimizer},
                showlegend=False,
                hovertext=f"<b>{in_figure(optimizer)}</b> on {in_figure(region.problem)}<br>"
                f"best {region.n} trials: {number(low)} to {number(high)}, median {number(region.value)}",
                hoverinfo="text",
            )
        )
    return drawn


def _value(spread: DimensionSpread, coordinate: float) -> float:
    low, high = (math.log(v) if spread.log else v for v in spread.box)
    place = low + coordinate * (high - low)
    return math.exp(place) if spread.log else place


def plot_performance_profiles(
    file: FileResults, *, styles: Mapping[str, OptimizerStyle] | None = None
) -> go.Figure | None:
    """Share of the problems that an optimizer solves within τ times the fastest one's time; scored left of the line.

    Args:
        file: with curves.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None if nothing is solved.
    """
    profiles = performance_profiles(times_to_target(file))
    if not profiles:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    figure = go.Figure(
        layout=layout(x_title="time to target, as a multiple of the fastest", y_title="share of the problems (%)")
    )
    end = max(R_MAX, *(ratio for profile in profiles for ratio in profile.ratios if ratio < math.inf)) * _MARGIN
    for profile in profiles:
        style = styles[profile.optimizer]
        places = sorted({1.0, *(ratio for ratio in profile.ratios if ratio < math.inf), end})
        figure.add_trace(
            go.Scatter(
                x=places,
                y=[100 * profile.share_within(place) for place in places],
                mode="lines",
                line={"color": style.colour, "dash": style.dash, "width": 2, "shape": "hv"},
                name=in_figure(profile.optimizer),
                meta={"optimizer": profile.optimizer},
                hovertext=f"<b>{in_figure(profile.optimizer)}</b><br>score {number(profile.score, 3)}",
                hoverinfo="text",
            )
        )
    figure.update_yaxes(range=[-4, 104])
    figure.update_xaxes(value_axis([1.0, end]) | {"range": [math.log10(1 / _MARGIN), math.log10(end)]})
    figure.add_vline(R_MAX, line={"color": MUTED, "width": 1, "dash": "dot"}, layer="below")
    return figure


ENTRIES = (
    FigureEntry(
        name="best-regions",
        scope="dimension",
        sentence="where the best values of a hyperparameter lie on each problem",
        place=210,
        plot=lambda r: plot_best_regions(r.file, r.of, styles=r.styles),
        choices=lambda r: shared_dimensions(optimizer_spreads([r.file])),
    ),
    FigureEntry(
        name="performance-profiles",
        scope="file",
        sentence="share of the problems solved within a multiple of the fastest time",
        place=220,
        plot=lambda r: plot_performance_profiles(r.file, styles=r.styles),
    ),
)
