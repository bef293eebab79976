"""Where the time of a step goes, and what the optimizers say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.analysis.trust.health import StepAnatomy, step_anatomies
from kftune.dashboard.figures._arrays import floats
from kftune.dashboard.figures._entry import FigureEntry
from kftune.dashboard.figures.style import OptimizerStyle, axis, in_figure, layout, optimizer_styles, value_axis
from kftune.wording import number

__all__ = ["PHASE_TITLES", "READINGS", "plot_reading", "plot_step_against_sgd", "plot_step_anatomy", "readings_there"]

PHASE_TITLES = {
    "data": "data",
    "forward_backward": "forward and backward",
    "statistics": "curvature statistics",
    "inversion": "inversion",
    "preconditioning": "preconditioning",
    "update": "update",
    "other": "other",
}
# Not the optimizers' colours; told apart in grey by their patterns.
_PHASE_LOOKS = (
    ("#b8bfc8", ""),
    ("#7f8c9b", ""),
    ("#b98a3c", "/"),
    ("#8c4a3c", ""),
    ("#5b8a72", "x"),
    ("#a9c4b5", ""),
    ("#d8d3c8", "."),
)

READINGS = {
    "kl_clip_active": "updates shortened by the KL clip (%)",
    "damping": "damping",
    "momentum": "momentum",
    "lr": "learning rate",
}
"""What optimizers may tell of themselves → axis title; other readings are drawn under their own names."""


def plot_step_anatomy(file: FileResults, problem: str) -> go.Figure | None:
    """Milliseconds of an update by phase, one bar per optimizer, the fastest on top.

    Args:
        file: the results of a study file.
        problem: label of one of its problems.

    Returns:
        None while no run has ended well.
    """
    shown = _of_problem(file, problem)
    if not shown:
        return None
    names = [in_figure(anatomy.optimizer) for anatomy in shown]
    figure = go.Figure(
        layout=layout(
            x_title="",
            y_title="",
            barmode="stack",
            bargap=0.35,
            height=210 + 26 * len(shown),
            xaxis=axis("time of an update, median over runs (ms)", rangemode="tozero"),
            yaxis=axis("optimizer", type="category", autorange="reversed", showgrid=False),
            showlegend=True,
            legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "traceorder": "normal"},
            margin={"l": 60, "r": 14, "t": 100, "b": 50},
        )
    )
    for (phase, title), (colour, pattern) in zip(PHASE_TITLES.items(), _PHASE_LOOKS, strict=True):
        figure.add_trace(
            go.Bar(
                x=[1000 * a.seconds_per_update * a.phase_shares.get(phase, 0.0) for a in shown],
                y=names,
                orientation="h",
                name=title,
                marker={"color": colour, "pattern": {"shape": pattern, "size": 6, "solidity": 0.35}},
                customdata=[100 * a.phase_shares.get(phase, 0.0) for a in shown],
                hovertemplate=f"{title}: %{{x:.3g}} ms, %{{customdata:.0f}} %<extra></extra>",
            )
        )
    return figure


def _of_problem(file: FileResults, problem: str) -> list[StepAnatomy]:
    found = [anatomy for anatomy in step_anatomies(file) if anatomy.problem == problem]
    return sorted(found, key=lambda anatomy: anatomy.seconds_per_update)


def plot_step_against_sgd(
    file: FileResults, problem: str, *, styles: Mapping[str, OptimizerStyle] | None = None
) -> go.Figure | None:
    """Time of an update as a multiple of SGD's, at whatever batch sizes the search tried.

    Args:
        file: the results of a study file.
        problem: label of one of its problems.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None if there is no SGD to compare with.
    """
    shown = [(a.optimizer, a.against_sgd) for a in _of_problem(file, problem) if a.against_sgd is not None]
    if not shown:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    figure = go.Figure(
        layout=layout(
            x_title="",
            y_title="",
            height=210 + 26 * len(shown),
            xaxis=axis("time of an update, as a multiple of SGD's") | value_axis(ratio for _, ratio in shown),
            yaxis=axis("optimizer", type="category", autorange="reversed"),
            margin={"l": 60, "r": 40, "t": 100, "b": 50},
        )
    )
    for name, ratio in shown:
        figure.add_trace(
            go.Scatter(
                x=[ratio],
                y=[in_figure(name)],
                mode="markers+text",
                text=[f" {number(ratio, 3)}"],
                textposition="middle right",
                cliponaxis=False,
                marker={"color": styles[name].colour, "symbol": styles[name].symbol, "size": 10},
                meta={"optimizer": name},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    figure.update_yaxes(categoryorder="array", categoryarray=[in_figure(name) for name, _ in shown])
    return figure


class _Reading(NamedTuple):
    """One reading of the best trial's first run that ended well and has it."""

    study: StudyResults
    trial: int
    seconds: Sequence[float]
    values: Sequence[float]


def readings_there(file: FileResults, problem: str) -> list[str]:
    """Readings that some optimizer's best trial has, the usual ones first."""
    there = {
        name
        for study in file.of_problem(problem)
        for trial in study.ranked()[:1]
        for run in trial.successes
        for point in run.result.curve
        for name in point.readings or {}
    }
    return [name for name in READINGS if name in there] + sorted(there - set(READINGS))


def plot_reading(
    file: FileResults, problem: str, name: str, *, styles: Mapping[str, OptimizerStyle] | None = None
) -> go.Figure | None:
    """One reading over the training time of each optimizer's best configuration, in its first run.

    Args:
        file: with curves.
        problem: label of one of its problems.
        name: of the reading; see :func:`readings_there`.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None if no optimizer has it.
    """
    found = [reading for study in file.of_problem(problem) if (reading := _reading(study, name)) is not None]
    if not found:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    is_share = name == "kl_clip_active"
    figure = go.Figure(layout=layout(x_title="training time (s)", y_title=READINGS.get(name, name)))
    for reading in found:
        record = reading.study.record
        style = styles[record.optimizer]
        figure.add_trace(
            go.Scatter(
                x=floats(reading.seconds),
                y=floats(100 * value if is_share else value for value in reading.values),
                mode="lines+markers" if len(reading.seconds) < 5 else "lines",
                name=in_figure(record.optimizer),
                line={"color": style.colour, "dash": style.dash, "width": 2},
                meta={
                    "optimizer": record.optimizer,
                    "study": record.study,
                    "trial": reading.trial,
                    "more": "<b>%{y:.4g}</b> at %{x:.4g} s",
                },
            )
        )
    if is_share:
        figure.update_yaxes(range=[-4, 104])
    elif name in ("damping", "lr"):
        figure.update_yaxes(value_axis(value for reading in found for value in reading.values))
    figure.update_xaxes(rangemode="tozero")
    return figure


def _reading(study: StudyResults, name: str) -> _Reading | None:
    for trial in study.ranked()[:1]:
        for run in trial.successes:
            points = [p for p in run.result.curve if p.readings is not None and name in p.readings]
            if points:
                values = [float((point.readings or {})[name]) for point in points]
                return _Reading(study, trial.trial.number, [point.train_seconds for point in points], values)
    return None


ENTRIES = (
    FigureEntry(
        name="step-anatomy",
        scope="problem",
        sentence="where the time of an update goes",
        place=180,
        plot=lambda r: plot_step_anatomy(r.file, r.problem),
    ),
    FigureEntry(
        name="step-against-sgd",
        scope="problem",
        sentence="time of an update, as a multiple of SGD's",
        place=190,
        plot=lambda r: plot_step_against_sgd(r.file, r.problem, styles=r.styles),
    ),
    FigureEntry(
        name="reading",
        scope="reading",
        sentence="damping, momentum or KL-clip activity over time",
        place=200,
        plot=lambda r: plot_reading(r.file, r.problem, r.of, styles=r.styles),
        choices=lambda r: readings_there(r.file, r.problem),
    ),
)
