"""How steady the machine was."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from kftune.analysis.stored.results import FileResults
from kftune.analysis.trust.health import health
from kftune.dashboard.figures._arrays import floats, spread_out, wholes
from kftune.dashboard.figures._entry import FigureEntry
from kftune.dashboard.figures.style import MUTED, OptimizerStyle, label_level, layout, optimizer_styles
from kftune.wording import time_unit

__all__ = ["plot_machine"]

_MOST = 2000


def plot_machine(file: FileResults, *, styles: Mapping[str, OptimizerStyle] | None = None) -> go.Figure | None:
    """How many times slower than usual the machine was during every run, with the tolerance; crosses were flagged.

    Args:
        file: the results of a study file; curves are not needed.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None if no run was calibrated.
    """
    found = health(file)
    readings = list(found.readings)
    if not readings:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    start = readings[0].started_at
    # The worst of many are drawn whatever happens, of the others every so-manieth.
    worst_first = sorted(range(len(readings)), key=lambda i: -abs(readings[i].slowdown - 1))
    kept = {worst_first[i] for i in spread_out(len(readings), _MOST)}
    after = {i: (readings[i].started_at - start).total_seconds() for i in kept}
    scale, unit = time_unit(max(after.values()))
    figure = go.Figure(
        layout=layout(
            x_title=f"start of the run, after the first ({unit})", y_title="time of the reference workload, × usual"
        )
    )
    for study in file.studies:
        mine = sorted(i for i in kept if readings[i].study == study.record.study)
        style = styles[study.record.optimizer]
        if not mine:
            continue
        figure.add_trace(
            go.Scatter(
                x=floats(after[i] / scale for i in mine),
                y=floats(readings[i].slowdown for i in mine),
                mode="markers",
                customdata=wholes(readings[i].trial for i in mine),
                meta={"optimizer": study.record.optimizer, "study": study.record.study, "more": "%{y:.3f} × usual"},
                marker={
                    "color": style.colour,
                    "symbol": [_symbol(style, is_flagged=readings[i].is_flagged) for i in mine],
                    "size": 7 if len(kept) < 300 else 5,
                },
                showlegend=False,
            )
        )
    if found.tolerance is not None:
        for edge in (1 + found.tolerance, 1 / (1 + found.tolerance)):
            figure.add_hline(edge, line={"color": MUTED, "width": 1.5, "dash": "dash"}, layer="below")
        label_level(figure, "flagged beyond", 1 + found.tolerance, side="right")
        # Plotly would end the axis on the lower line.
        ends = [1 + found.tolerance, 1 / (1 + found.tolerance), *(reading.slowdown for reading in readings)]
        margin = 0.05 * (max(ends) - min(ends))
        figure.update_yaxes(range=[min(ends) - margin, max(ends) + margin])
    return figure


def _symbol(style: OptimizerStyle, *, is_flagged: bool) -> str:
    return "x" if is_flagged else f"{style.symbol}-open"


ENTRIES = (
    FigureEntry(
        name="machine",
        scope="file",
        sentence="how fast the machine was during every run",
        place=230,
        plot=lambda r: plot_machine(r.file, styles=r.styles),
    ),
)
