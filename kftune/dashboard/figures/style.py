"""One look for all figures: the same colour and dash for an optimizer everywhere, readable on light and dark paper."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go

__all__ = [
    "DARK",
    "INK",
    "MUTED",
    "RULE",
    "SCALE",
    "OptimizerStyle",
    "axis",
    "in_figure",
    "label_level",
    "layout",
    "optimizer_styles",
    "value_axis",
]

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), told apart with any kind of colour vision, without the
# yellow that white paper swallows. Beside each its shade for dark paper.
_PALETTE = (
    ("#0072b2", "#4aa3e0"),  # blue
    ("#d55e00", "#f0813a"),  # vermillion
    ("#009e73", "#2ebf95"),  # bluish green
    ("#cc79a7", "#de97bf"),  # reddish purple
    ("#e69f00", "#f0b429"),  # orange
    ("#56b4e9", "#9bd5f7"),  # sky blue
    ("#4b5563", "#c3c9d2"),  # grey, for black
    # For an eighth to a fifteenth optimizer; with some kinds of colour vision these need their dashes and symbols too.
    ("#b0001e", "#ff4d5e"),  # crimson
    ("#6611cc", "#9a66ff"),  # violet
    ("#5cb81c", "#8df04a"),  # lime
    ("#6b3d00", "#b8873f"),  # brown
    ("#e6168c", "#ff4fb8"),  # magenta
    ("#8a8d00", "#e6e84a"),  # olive
    ("#10187f", "#5570ff"),  # navy
    ("#c0a468", "#f3e3b8"),  # sand
)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
# Three further for each time the colours come again: one colour has no two alike among those that have a style.
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "star")

# What nearly every study has keeps its colour from one study file to the next; others take what is left.
_USUAL = {"kfac": 0, "sgd": 1, "adamw": 2, "foof": 3, "ekfac": 4, "shampoo": 5, "soap": 6}

INK = "#1f2730"
MUTED = "#6a7380"
GRID = "#e4e8ec"
RULE = "#aab2bc"
PAPER = "rgba(0,0,0,0)"
LABEL = "#ffffff"

# Viridis without its lightest fifth, best (dark) to worst; on dark paper the other way round, best is light.
SCALE = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151")
_DARK_SCALE = ("#fde725", "#7ad152", "#22a885", "#2a8f9e", "#6675c4")

DARK = (
    dict(_PALETTE)
    | {INK: "#e3e7ec", MUTED: "#98a2ae", GRID: "#2d343d", RULE: "#56606c", LABEL: "#20262e"}
    | dict(zip(SCALE, _DARK_SCALE, strict=True))
)
"""Every colour of a figure → its counterpart on dark paper; the page exchanges them."""

_NO_RANGE, _SHORT_RANGE, _LONG_RANGE = 1.05, 5.0, 500.0
_MOST_DECADES = 6
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class OptimizerStyle(NamedTuple):
    """How an optimizer is drawn: its lines, and its marks where a mark says nothing else."""

    colour: str
    dash: str
    symbol: str = "circle"


def optimizer_styles(names: Iterable[str]) -> dict[str, OptimizerStyle]:
    """A style for each optimizer, by the order of their names; no two of the first 15 have one colour, of 35 one style.

    Optimizers that most studies have keep the same colour in every study file.
    """
    ordered = sorted(set(names))
    n = len(_PALETTE)
    places = {name: _USUAL[name] for name in ordered if name in _USUAL}
    free = iter(i for i in range(len(ordered) + n) if i not in places.values())
    places |= {name: next(free) for name in ordered if name not in places}
    return {
        name: OptimizerStyle(
            _PALETTE[i % n][0], _DASHES[(i + i // n) % len(_DASHES)], _SYMBOLS[(i + 3 * (i // n)) % len(_SYMBOLS)]
        )
        for name, i in ((name, places[name]) for name in ordered)
    }


def in_figure(text: str) -> str:
    """Text for a figure. Plotly reads a small HTML of its own there: a name is to be shown, not to be obeyed."""
    return html.escape(text, quote=False)


def axis(title: str, **other: Any) -> dict[str, Any]:
    """One axis in the look of all, with its title."""
    return {
        "gridcolor": GRID,
        "linecolor": MUTED,
        "tickcolor": MUTED,
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
        "title": {"text": in_figure(title), "standoff": 10},
    } | other


def layout(*, x_title: str, y_title: str, **other: Any) -> go.Layout:
    """A layout with titled axes and a legend above the plot; ``other`` attributes of it are added."""
    plain: dict[str, Any] = {
        "template": "none",
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"family": _FONT, "size": 13, "color": INK},
        "margin": {"l": 60, "r": 20, "t": 28, "b": 50},
        "xaxis": axis(x_title),
        "yaxis": axis(y_title),
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0},
        "hovermode": "closest",
        "modebar": {"bgcolor": PAPER, "color": MUTED, "activecolor": INK},
        "hoverlabel": {"bgcolor": LABEL, "bordercolor": MUTED, "font": {"color": INK, "size": 12}, "align": "left"},
    }
    return go.Layout(plain | other)


def label_level(figure: go.Figure, text: str, y: float, *, side: Literal["left", "right"]) -> None:
    """A small note just above a horizontal line, at one end of the plot; ``y`` is the logarithm on a log axis."""
    figure.add_annotation(
        text=text,
        font={"color": MUTED, "size": 11},
        xref="paper",
        x=0 if side == "left" else 1,
        xanchor=side,
        y=y,
        yanchor="bottom",
        showarrow=False,
    )


def _round_step(least: float) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def value_axis(values: Iterable[float], *, n_labels: int = 5) -> dict[str, Any]:
    """A logarithmic axis for all of ``values`` (at least one) if they are positive, else a linear one.

    ``n_labels`` is about how many there is room for along an axis that is shorter than a decade.
    """
    drawn = list(values)
    low, high = min(drawn), max(drawn)
    if low <= 0:
        return {"type": "linear"}
    axis: dict[str, Any] = {"type": "log", "minor": {"ticks": "outside", "ticklen": 2, "tickcolor": MUTED}}
    if high < _NO_RANGE * low:
        # Plotly would zoom in until rounding shows.
        ends = [math.log10(low / 2), math.log10(high * 2)]
        return axis | {"range": ends, "dtick": f"L{_round_step(low / 2):g}", "tickformat": "~g"}
    # Left alone, Plotly labels every digit until they overlap.
    if high <= _SHORT_RANGE * low:
        return axis | {"dtick": f"L{_round_step((high - low) / n_labels):g}", "tickformat": "~g"}
    if high < _LONG_RANGE * low:
        return axis | {"dtick": "D2", "tickformat": "~g"}
    return axis | {"dtick": math.ceil(math.log10(high / low) / _MOST_DECADES), "tickformat": "~g"}
