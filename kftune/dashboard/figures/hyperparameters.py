"""One optimizer's hyperparameters: slices, parallel coordinates, maps of two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from kftune.analysis.stored.results import StudyResults, TrialResults
from kftune.dashboard.figures._arrays import floats, spread_out, wholes
from kftune.dashboard.figures._dimensions import Scale, scales
from kftune.dashboard.figures._entry import FigureEntry, Request
from kftune.dashboard.figures.sorted_losses import SYMBOLS
from kftune.dashboard.figures.style import INK, MUTED, RULE, SCALE, OptimizerStyle, axis, in_figure, layout, value_axis
from kftune.wording import objective_title

__all__ = ["MOST_LINES", "map_pairs", "plot_map", "plot_parallel_coordinates", "plot_slices"]

_MOST_POINTS, MOST_LINES = 400, 120
_COLUMNS, _ROW_HEIGHT = 4, 230
_SMALL = {"size": 11, "color": MUTED}
_FIFTHS = ("best fifth", "second", "third", "fourth", "worst fifth or failed")
_LEAST_FAILURE = 5.5
_USUAL_PAIRS = (("lr", "damping"), ("lr", "batch_size"), ("lr", "effective_batch_size"), ("lr", "momentum"))


class _Valued(NamedTuple):
    """A settled trial with a value, and its place among those, from 0."""

    trial: TrialResults
    value: float
    place: int


def _valued(study: StudyResults, most: int, *, evenly: bool = False) -> list[_Valued]:
    """The trials to draw, best first; of many every so-manieth and, if not ``evenly``, all of the very best."""
    trials = [t for t in study.finished if t.trial.value is not None and math.isfinite(t.trial.value)]
    trials.sort(key=lambda trial: (trial.trial.value, trial.trial.number))
    chosen = list(range(0, len(trials), -(-len(trials) // most) or 1)) if evenly else spread_out(len(trials), most)
    return [_Valued(trials[i], float(trials[i].trial.value or 0.0), i) for i in chosen]


def plot_slices(study: StudyResults, style: OptimizerStyle) -> go.Figure | None:
    """Value against each hyperparameter as it was sampled, with the edges of the box; filled are the best tenth.

    Args:
        study: one optimizer on one problem.
        style: of the optimizer.

    Returns:
        None while there is no trial with a value, or nothing is searched.
    """
    drawn, dimensions = _valued(study, _MOST_POINTS), scales(study)
    if not drawn or not dimensions:
        return None
    what = objective_title(study.objective)
    n_columns = min(_COLUMNS, len(dimensions))
    n_rows = math.ceil(len(dimensions) / n_columns)
    y_axis = value_axis(entry.value for entry in drawn)
    parts: dict[str, Any] = {"height": 40 + _ROW_HEIGHT * n_rows, "shapes": []}
    traces = []
    for i, scale in enumerate(dimensions):
        row, column = divmod(i, n_columns)
        number = str(i + 1) if i else ""
        is_first = column == 0
        parts[f"xaxis{number}"] = axis(
            scale.name, anchor=f"y{number}", domain=_share(column, n_columns, 0.05), **scale.axis()
        )
        parts[f"yaxis{number}"] = (
            axis(what if is_first else "", anchor=f"x{number}", domain=_from_top(row, n_rows, 0.28 / n_rows))
            | y_axis
            | ({"matches": "y"} if i else {})
            | ({} if is_first else {"showticklabels": False})
        )
        parts["shapes"] += [_edge(f"x{number}", f"y{number} domain", edge) for edge in scale.edges()]
        traces.append(_slice(study, style, scale, drawn, axes=number))
    return go.Figure(data=traces, layout=layout(x_title="", y_title="", **parts))


def _edge(x: str, y: str, at: float, *, is_level: bool = False) -> dict[str, Any]:
    """A line at an edge of the box: upright, in the whole height of the axes; or level, in their whole width."""
    line = {"type": "line", "xref": x, "yref": y, "line": {"color": RULE, "width": 1.5, "dash": "dot"}}
    return line | ({"x0": 0, "x1": 1, "y0": at, "y1": at} if is_level else {"x0": at, "x1": at, "y0": 0, "y1": 1})


def _share(i: int, n: int, gap: float) -> list[float]:
    width = (1 - gap * (n - 1)) / n
    return [i * (width + gap), min(1.0, i * (width + gap) + width)]


def _from_top(i: int, n: int, gap: float) -> list[float]:
    low, high = _share(n - 1 - i, n, gap)
    return [low, high]


def _slice(
    study: StudyResults, style: OptimizerStyle, scale: Scale, drawn: Sequence[_Valued], *, axes: str
) -> go.Scatter:
    active = [entry for entry in drawn if scale.name in entry.trial.trial.params]
    n_best = _n_best(study)
    symbols = [SYMBOLS[e.trial.failure] + ("" if e.place < n_best or e.trial.failure else "-open") for e in active]
    return go.Scatter(
        x=scale.drawn(entry.trial.trial.params[scale.name] for entry in active),
        y=floats(entry.value for entry in active),
        xaxis=f"x{axes}",
        yaxis=f"y{axes}",
        mode="markers",
        customdata=wholes(entry.trial.trial.number for entry in active),
        meta={"study": study.record.study},
        marker={"color": style.colour, "symbol": symbols, "size": 6 if len(active) <= 150 else 4.5},
        showlegend=False,
    )


def _n_best(study: StudyResults) -> int:
    return max(3, math.ceil(len(study.finished) / 10))


def plot_parallel_coordinates(study: StudyResults) -> go.Figure | None:
    """Every trial a line over all hyperparameters, the best fifth darkest (on dark paper: lightest) and on top.

    Of many trials every so-manieth is drawn.

    Args:
        study: one optimizer on one problem.

    Returns:
        None while there is no trial with a value, or fewer than two hyperparameters are searched.
    """
    drawn, dimensions = _valued(study, MOST_LINES, evenly=True), scales(study)
    if not drawn or len(dimensions) < 2:
        return None
    n_axes = len(dimensions)
    whole = layout(
        x_title="",
        y_title="",
        height=340,
        xaxis=axis(
            "hyperparameter, from edge to edge of its box",
            showgrid=False,
            showline=False,
            ticks="",
            range=[-0.25, n_axes - 0.75],
            tickvals=list(range(n_axes)),
            ticktext=[in_figure(scale.name) for scale in dimensions],
        ),
        yaxis={"range": [-0.1, 1.1], "visible": False},
        margin={"l": 20, "r": 20, "t": 28, "b": 60},
        **_legend(),
        shapes=[
            {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {"color": RULE, "width": 1}, "layer": "below"}
            for x in range(n_axes)
        ],
        annotations=[
            {"x": x, "y": y, "text": in_figure(text), "showarrow": False, "yanchor": anchor, "font": _SMALL}
            for x, scale in enumerate(dimensions)
            for y, text, anchor in ((0, scale.low_text, "top"), (1, scale.high_text, "bottom"))
        ],
    )
    fifths: list[list[_Valued]] = [[] for _ in SCALE]
    for entry, fifth in zip(drawn, _fifths(drawn), strict=True):
        fifths[fifth].append(entry)
    traces = [_polylines(study, fifths[i], i, dimensions) for i in (4, 3, 2, 1, 0) if fifths[i]]
    return go.Figure(data=traces, layout=whole)


def _legend() -> dict[str, Any]:
    """Of the fifths, the best first: it is the last to be drawn."""
    legend = {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "traceorder": "reversed", "font": _SMALL}
    return {"showlegend": True, "legend": legend}


def _fifths(drawn: Sequence[_Valued]) -> list[int]:
    """Which fifth of the trials each belongs to, 0 the best; one of which no run ended well never stands out."""
    n = 1 + max(entry.place for entry in drawn)
    return [min(4, 5 * entry.place // n) if entry.trial.successes else 4 for entry in drawn]


def _polylines(study: StudyResults, drawn: Sequence[_Valued], fifth: int, dimensions: Sequence[Scale]) -> go.Scatter:
    """The lines of a fifth of the trials as one trace, with a gap after each."""
    x: list[float] = []
    y: list[float] = []
    numbers: list[int] = []
    for entry in drawn:
        params = entry.trial.trial.params
        shown = [(at, scale.place(params[scale.name])) for at, scale in enumerate(dimensions) if scale.name in params]
        x += [*(at for at, _ in shown), math.nan]
        y += [*(place for _, place in shown), math.nan]
        numbers += [entry.trial.trial.number] * (len(shown) + 1)
    return go.Scatter(
        x=floats(x),
        y=floats(y),
        customdata=wholes(numbers),
        mode="lines",
        line={"color": SCALE[fifth], "width": (2.2 if len(drawn) < 10 else 1.4) if fifth == 0 else 1},
        opacity=(1.0, 0.5, 0.5, 0.5, 0.8)[fifth],
        meta={"study": study.record.study},
        name=_FIFTHS[fifth],
    )


def map_pairs(study: StudyResults) -> list[tuple[str, str]]:
    """Pairs of hyperparameters that are looked at together, of those that are searched."""
    by_name = {scale.hyperparameter: scale.name for scale in scales(study) if not scale.choices}
    return [(by_name[a], by_name[b]) for a, b in _USUAL_PAIRS if a in by_name and b in by_name]


def plot_map(study: StudyResults, pair: tuple[str, str]) -> go.Figure | None:
    """Trials in the plane of two hyperparameters as sampled; the better, the larger and darker (dark paper: lighter).

    Args:
        study: one optimizer on one problem.
        pair: sampled names; see :func:`map_pairs`.

    Returns:
        None while there is no trial with a value.
    """
    x_scale, y_scale = (next(scale for scale in scales(study) if scale.name == name) for name in pair)
    drawn = [entry for entry in _valued(study, _MOST_POINTS) if all(name in entry.trial.trial.params for name in pair)]
    if not drawn:
        return None
    n = 1 + max(entry.place for entry in drawn)
    fifths = _fifths(drawn)
    traces = []
    for fifth in (4, 3, 2, 1, 0):
        mine = [entry for entry, of in zip(drawn, fifths, strict=True) if of == fifth]
        if mine:
            traces.append(_places(study, mine, fifth, (x_scale, y_scale), n))
    edges = [
        *(_edge("x", "y domain", edge) for edge in x_scale.edges()),
        *(_edge("x domain", "y", edge, is_level=True) for edge in y_scale.edges()),
    ]
    axes = {"xaxis": axis(x_scale.name) | x_scale.axis(), "yaxis": axis(y_scale.name) | y_scale.axis()}
    return go.Figure(data=traces, layout=layout(x_title="", y_title="", height=340, shapes=edges, **axes, **_legend()))


def _places(study: StudyResults, drawn: Sequence[_Valued], fifth: int, axes: tuple[Scale, Scale], n: int) -> go.Scatter:
    x_scale, y_scale = axes
    params: list[Mapping[str, Any]] = [entry.trial.trial.params for entry in drawn]
    size = (11, 9, 7.5, 6.5, 5.5)[fifth] * (1 if n <= 150 else 0.6)
    return go.Scatter(
        x=x_scale.drawn(p[x_scale.name] for p in params),
        y=y_scale.drawn(p[y_scale.name] for p in params),
        mode="markers",
        customdata=wholes(entry.trial.trial.number for entry in drawn),
        meta={"study": study.record.study},
        marker={
            "color": SCALE[fifth],
            "symbol": [SYMBOLS[entry.trial.failure] for entry in drawn],
            "size": [max(size, _LEAST_FAILURE) if entry.trial.failure else size for entry in drawn],
            "line": {"color": INK, "width": 0.6 if fifth == 0 else 0},
        },
        name=_FIFTHS[fifth],
    )


def _pairs(request: Request) -> list[str]:
    return [",".join(pair) for pair in map_pairs(request.study)]


def _map(request: Request) -> go.Figure | None:
    return next((plot_map(request.study, p) for p in map_pairs(request.study) if ",".join(p) == request.of), None)


ENTRIES = (
    FigureEntry(
        name="slices",
        scope="optimizer",
        sentence="loss against each hyperparameter, with the box",
        place=110,
        plot=lambda r: plot_slices(r.study, r.style),
    ),
    FigureEntry(
        name="parallel-coordinates",
        scope="optimizer",
        sentence="all trials over all hyperparameters",
        place=120,
        plot=lambda r: plot_parallel_coordinates(r.study),
    ),
    FigureEntry(
        name="map",
        scope="pair",
        sentence="trials in the plane of two hyperparameters",
        place=140,
        plot=_map,
        choices=_pairs,
    ),
)
