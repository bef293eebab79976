"""Figures alone, as files for papers and slides."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from kftune.analysis.stored.results import FileResults
from kftune.analysis.tuning.budget import tuned_for
from kftune.dashboard.figures import FIGURES, Request, figures_in_order
from kftune.dashboard.figures.style import optimizer_styles
from kftune.dashboard.page import render_panels, write_whole
from kftune.dashboard.parts import Figure, Panel, Plots
from kftune.errors import UnknownNameError, UsageError
from kftune.wording import number

__all__ = ["FORMATS", "make_request", "write_figure"]

FORMATS = ("png", "svg", "pdf", "html")
_WIDTH, _HEIGHT, _PNG_SCALE = 760, 440, 2


def make_request(
    name: str,
    file: FileResults,
    *,
    problem: str | None = None,
    optimizer: str | None = None,
    of: str | None = None,
    at: float | None = None,
) -> Request:
    """What is to be drawn, checked; what is not said is chosen where there is one choice only.

    Args:
        name: of the figure.
        file: with curves.
        problem: label.
        optimizer: label.
        of: hyperparameter, pair of them (``"lr,damping"``), or reading.
        at: seconds of training, the place of the page's budget slider.

    Raises:
        UnknownNameError: of an unknown figure, problem, optimizer, hyperparameter or reading.
        UsageError: something that is needed was not said, or the figure does not depend on ``at`` or has no such place.
    """
    entry = FIGURES.get(name)
    needs_problem = entry.scope not in ("file", "dimension")
    needs_optimizer = entry.scope in ("optimizer", "pair")
    request = Request(
        file=file,
        problem=_one("problem", problem, file.problems, needed=needs_problem),
        optimizer=_one("optimizer", optimizer, file.optimizers, needed=needs_optimizer),
        styles=optimizer_styles(file.optimizers),
        at=None if at is None else _place(name, file, at),
    )
    choices = entry.choices(request)
    if entry.scope not in ("dimension", "pair", "reading"):
        return request
    if not choices:
        raise UsageError(f"{file.name} has nothing to draw as {name!r}: {entry.sentence}")
    chosen = _one("value of --of", of, choices, needed=True)
    return replace(request, of=chosen)


def _place(name: str, file: FileResults, at: float) -> float:
    """A place of the budget slider, checked."""
    if not FIGURES.get(name).has_at:
        able = ", ".join(entry.name for entry in figures_in_order() if entry.has_at)
        raise UsageError(f"--at: {name} does not depend on the budget (figures that do: {able})")
    budget = tuned_for(file)
    if budget is None:
        raise UsageError(f"--at is in seconds, and the budget of {file.name} is not")
    if not 0 < at <= budget:
        raise UsageError(f"--at must be above 0 and at most the budget, {number(budget)} seconds, got {number(at)}")
    return at


def _one(what: str, said: str | None, available: tuple[str, ...] | list[str], *, needed: bool) -> str:
    if said is not None:
        if said not in available:
            raise UnknownNameError(what, said, available)
        return said
    if needed and len(available) > 1:
        option = "--of" if what.endswith("--of") else f"--{what}"
        raise UsageError(f"there are several: choose one with {option} (available: {', '.join(available)})")
    return available[0]


def write_figure(
    name: str, request: Request, *, out: Path, database: str, width: int | None = None, height: int | None = None
) -> Path:
    """Draw a figure into a file; its suffix says as what.

    Args:
        name: of the figure.
        request: from :func:`make_request`.
        out: ``.png`` (twice the pixels), ``.svg``, ``.pdf`` or ``.html``; written whole or not at all.
        database: where the data come from, for the foot of an HTML page.
        width: in pixels; one that suits the figure by default.
        height: likewise.

    Returns:
        ``out``.

    Raises:
        UsageError: there is nothing to draw, the suffix is none of these, there is no browser to draw with, or the
            file cannot be written.
    """
    entry, suffix = FIGURES.get(name), out.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UsageError(f"cannot write {out}: the name must end with one of {', '.join(f'.{s}' for s in FORMATS)}")
    figure = entry.plot(request)
    if figure is None:
        raise UsageError(f"{request.file.name} has nothing to draw yet as {name!r}: {entry.sentence}")
    if suffix == "html":
        tall = height or figure.layout.height
        panel = Panel(name, name.replace("-", " ").capitalize(), entry.sentence, [Plots([Figure(figure, name, tall)])])
        title = request.problem if entry.scope not in ("file", "dimension") else request.file.name
        text = render_panels([request.file], [(title, [panel])], title=request.file.name, database=database)
        write_whole(out, text.encode("utf-8"))
    else:
        size = {"width": width or _WIDTH, "height": height or figure.layout.height or _HEIGHT}
        write_whole(out, _drawn(_for_paper(figure, request), suffix, size))
    return out


def _for_paper(figure: go.Figure, request: Request) -> dict[str, Any]:
    """As plain data, with the legend that the page has outside the figure, on white."""
    plain: dict[str, Any] = figure.to_plotly_json()
    layout = plain["layout"]
    traces = [trace for trace in plain["data"] if trace.get("name") and trace.get("showlegend", True)]
    has_legend = len(traces) > 1
    layout |= {"showlegend": has_legend, "paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff"}
    if has_legend and len(traces) > len(request.file.optimizers) / 2:
        layout["legend"] = {"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top", "itemwidth": 44}
    return plain


def _drawn(figure: Mapping[str, Any], suffix: str, size: Mapping[str, int]) -> bytes:
    """The picture, made by the Chromium or Chrome that is installed; it asks no host for anything.

    Raises:
        UsageError: there is none, or it does not start.
    """
    import kaleido
    from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError

    options = {"format": suffix, "scale": _PNG_SCALE if suffix == "png" else 1, **size}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own temporary files and coroutines
            made: bytes = kaleido.calc_fig_sync(figure, opts=options, kopts={"mathjax": False})
    except ChromeNotFoundError as error:
        raise UsageError(
            f"a figure as .{suffix} is drawn by a browser, and no Chromium or Chrome was found (set BROWSER_PATH to "
            "one, or write .html)"
        ) from error
    except (BrowserFailedError, BrowserClosedError) as error:
        raise UsageError(f"the browser that draws .{suffix} does not start; write .html instead") from error
    return made
