"""What panels are made of: figures, tables, choices between them, and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import plotly.graph_objects as go

from kftune.dashboard.header import Share

__all__ = [
    "DASH",
    "Bar",
    "Cell",
    "Choice",
    "Chooser",
    "Figure",
    "Missing",
    "Panel",
    "Part",
    "Plots",
    "Slider",
    "Source",
    "Table",
    "name_of",
    "plots",
]


@dataclass(frozen=True)
class Figure:
    """A Plotly figure and what it shows, in words, for those who do not see it; ``height``, in pixels, replaces its."""

    figure: go.Figure
    label: str
    height: int | None = None

    @property
    def pixels(self) -> int | None:
        """Its height; None: the page's usual one."""
        height = self.height or self.figure.layout.height
        return None if height is None else int(height)


@dataclass(frozen=True)
class Plots:
    """Figures side by side, where there is room, under a key to their marks.

    Attributes:
        figures: at least one.
        symbols: explains the marks of trials.
        marks: optimizers whose marks are explained: those of figures without lines, which the page's legend shows.
        caption: a heading; "" for none.
        note: beside it.
    """

    kind: ClassVar[str] = "plots"
    figures: Sequence[Figure]
    symbols: bool = False
    marks: Sequence[str] = ()
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: what stands in it.
        kind: CSS class: ``text``, ``number``, ``main`` or ``none`` (a zero, a dash).
        optimizer: whose mark stands before the text.
        shade: 0 to 1, how strongly it is tinted.
        title: what the reader sees who points at it.
    """

    text: str
    kind: str = "number"
    optimizer: str | None = None
    shade: float | None = None
    title: str = ""


DASH = Cell("–", "none")
"""In the place of what is not known."""


def name_of(optimizer: str) -> Cell:
    """An optimizer's name behind its mark."""
    return Cell(optimizer, "text", optimizer=optimizer)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: one cell per column.
        rows: cells.
        optimizer: gives its caption that optimizer's mark and name.
        caption: words above it.
        note: smaller words after the caption.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    optimizer: str | None = None
    caption: str = ""
    note: str = ""


@dataclass(frozen=True)
class Missing:
    """One sentence in the place of what cannot be shown: why not, and what would fill it."""

    kind: ClassVar[str] = "missing"
    text: str


@dataclass(frozen=True)
class Slider:
    """A slider over the budget, with the figure and the table that follow it.

    Attributes:
        figure: sorted losses at the whole budget; the page exchanges its points.
        data: what the page needs for every other place of the slider.
        label: what the slider is over, with its unit.
        places: readings of the slider, rising, as people read them; the last is the budget.
        beside: a figure in which the page moves a line.
    """

    kind: ClassVar[str] = "slider"
    figure: Figure
    data: Mapping[str, Any]
    label: str
    places: Sequence[str]
    beside: Figure | None = None


@dataclass(frozen=True)
class Bar:
    """A bar of shares with their key and a note."""

    kind: ClassVar[str] = "bar"
    shares: Sequence[Share]
    note: str


@dataclass(frozen=True)
class Source:
    """A text file, folded up under its title."""

    kind: ClassVar[str] = "source"
    title: str
    text: str


@dataclass(frozen=True)
class Choice:
    """One of several views: its name on the button, and its parts."""

    name: str
    parts: Sequence[Part]
    is_optimizer: bool = False


@dataclass(frozen=True)
class Chooser:
    """Views of which one is shown at a time."""

    kind: ClassVar[str] = "chooser"
    key: str
    label: str
    choices: Sequence[Choice]


Part: TypeAlias = Plots | Table | Missing | Slider | Chooser | Bar | Source


@dataclass(frozen=True)
class Panel:
    """One part of the page.

    Attributes:
        key: for links and tests, e.g. ``"sorted-losses"``.
        title: heading.
        sentence: what to see in it.
        parts: one below the other.
    """

    key: str
    title: str
    sentence: str
    parts: Sequence[Part]


def plots(drawn: Iterable[tuple[go.Figure | None, str]], *, missing: str, **other: Any) -> Plots | Missing:
    """The figures that there are, with what else :class:`Plots` takes; if there is none, the sentence that says so."""
    figures = [Figure(figure, label) for figure, label in drawn if figure is not None]
    return Plots(figures, **other) if figures else Missing(missing)
