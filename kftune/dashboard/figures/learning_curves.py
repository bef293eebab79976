"""Learning curves of the best configurations, against seconds and against updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from kftune.analysis.stored.curves import Across, Measure, RepeatedCurve, repeated_curve
from kftune.analysis.stored.results import FileResults, TrialResults
from kftune.dashboard.figures._arrays import floats
from kftune.dashboard.figures._entry import FigureEntry, Request
from kftune.dashboard.figures.style import OptimizerStyle, in_figure, layout, optimizer_styles, value_axis
from kftune.wording import outcome_title

__all__ = ["measures", "plot_learning_curves"]

_X_TITLES: Mapping[Across, str] = {"train_seconds": "training time (s)", "update": "parameter updates"}
_Y_TITLES: Mapping[Measure, str] = {
    "test_loss": "test loss",
    "train_loss": "train loss",
    "accuracy": "test accuracy (%)",
}


class _Curve(NamedTuple):
    """One configuration.

    Attributes:
        optimizer: label.
        rank: among the optimizer's trials, from 1.
        trial: its number.
        curve: over its repeats; accuracies in percent.
        study: name of the study.
        not_drawn: how the runs that are left out ended.
    """

    optimizer: str
    rank: int
    trial: int
    curve: RepeatedCurve
    study: str
    not_drawn: tuple[str, ...]


class _LearningCurvesInfo(NamedTuple):
    """The best configurations of every optimizer on one problem."""

    curves: list[_Curve]


def measures(file: FileResults, problem: str) -> tuple[Measure, ...]:
    """What there is to draw: the loss that is looked at, and the accuracy if the problem has one."""
    loss: Measure = "train_loss" if file.objective == "train_loss" else "test_loss"
    has_accuracy = any(
        point.accuracy is not None
        for study in file.of_problem(problem)
        for run in study.runs
        for point in run.result.curve[:1]
    )
    return (loss, "accuracy") if has_accuracy else (loss,)


def plot_learning_curves(
    file: FileResults,
    problem: str,
    *,
    across: Across,
    measure: Measure,
    top: int = 4,
    styles: Mapping[str, OptimizerStyle] | None = None,
) -> go.Figure | None:
    """Curves of each optimizer's best configurations on one problem (Figs. 6 to 9 of the thesis).

    The best is drawn strongly, with the range over its repeats; the others thinly. Runs that failed are left out.

    Args:
        file: the results of a study file, read with curves.
        problem: label of one of its problems.
        across: train seconds or updates.
        measure: a loss or the accuracy.
        top: how many of each optimizer.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None while no trial has ended well.
    """
    info = _get_learning_curves_info(file, problem, across=across, measure=measure, top=top)
    if not info.curves:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    figure = go.Figure(layout=layout(x_title=_X_TITLES[across], y_title=_Y_TITLES[measure]))
    for curve in info.curves:
        if curve.rank == 1:
            figure.add_trace(_band(curve, styles[curve.optimizer]))
    for curve in sorted(info.curves, key=lambda curve: -curve.rank):  # the best on top
        figure.add_trace(_line(curve, styles[curve.optimizer]))
    figure.update_xaxes(range=[0, 1.02 * max(curve.curve.x[-1] for curve in info.curves)])
    if measure != "accuracy":
        figure.update_yaxes(_loss_axis(info.curves))
    return figure


def _loss_axis(curves: Sequence[_Curve]) -> dict[str, Any]:
    """Up to a little above the untrained model's loss: what goes far beyond it on the way is cut off."""
    low = min(value for curve in curves for value in curve.curve.low)
    start = max(curve.curve.mean[0] for curve in curves)
    high = max(value for curve in curves for value in curve.curve.high)
    if low <= 0 or high <= 3 * start:
        return value_axis([low, high])
    return value_axis([low, start]) | {"range": [math.log10(0.9 * low), math.log10(1.5 * start)]}


def _band(curve: _Curve, style: OptimizerStyle) -> go.Scatter:
    x, low, high = curve.curve.x, curve.curve.low, curve.curve.high
    return go.Scatter(
        x=floats([*x, *reversed(x)]),
        y=floats([*low, *reversed(high)]),
        fill="toself",
        fillcolor=style.colour,
        opacity=0.18,
        mode="none",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=in_figure(curve.optimizer),
        meta={"optimizer": curve.optimizer},
    )


def _line(curve: _Curve, style: OptimizerStyle) -> go.Scatter:
    is_best = curve.rank == 1
    return go.Scatter(
        x=floats(curve.curve.x),
        y=floats(curve.curve.mean),
        mode="lines",
        name=in_figure(curve.optimizer),
        legendgroup=in_figure(curve.optimizer),
        showlegend=is_best,
        meta={"optimizer": curve.optimizer, "study": curve.study, "trial": curve.trial, "more": _more(curve)},
        line={"color": style.colour, "dash": style.dash, "width": 2.5 if is_best else 1.2},
        opacity=1.0 if is_best else 0.55,
    )


def _more(curve: _Curve) -> str:
    """What stands in the box of the reader who points at it, besides the configuration."""
    left_out = f"<br>{len(curve.not_drawn)} runs not drawn: {', '.join(curve.not_drawn)}" if curve.not_drawn else ""
    return f"<b>%{{y:.4g}}</b> at %{{x:.4g}}, no. {curve.rank} of this optimizer{left_out}"


def _get_learning_curves_info(
    file: FileResults, problem: str, *, across: Across, measure: Measure, top: int
) -> _LearningCurvesInfo:
    curves = []
    for study in file.of_problem(problem):
        for rank, trial in enumerate(study.ranked()[:top], start=1):
            curve = repeated_curve([run.result for run in trial.successes], across=across, measure=measure)
            if curve is not None:
                scaled = _in_percent(curve) if measure == "accuracy" else curve
                record, number = study.record, trial.trial.number
                curves.append(_Curve(record.optimizer, rank, number, scaled, record.study, _not_drawn(trial)))
    return _LearningCurvesInfo(curves)


def _in_percent(curve: RepeatedCurve) -> RepeatedCurve:
    return RepeatedCurve(curve.x, *(tuple(100 * value for value in values) for values in curve[1:]))


def _not_drawn(trial: TrialResults) -> tuple[str, ...]:
    return tuple(outcome_title(run.result.outcome.value) for run in trial.runs if run not in trial.successes)


def _alone(across: Across, *, accuracy: bool = False) -> Callable[[Request], go.Figure | None]:
    """Draws one measure of a problem: what is minimised, or the accuracy where there is one."""

    def plot(request: Request) -> go.Figure | None:
        there = measures(request.file, request.problem)
        if accuracy and "accuracy" not in there:
            return None
        measure = "accuracy" if accuracy else there[0]
        return plot_learning_curves(
            request.file, request.problem, across=across, measure=measure, styles=request.styles
        )

    return plot


ENTRIES = (
    FigureEntry(
        name="loss-against-seconds",
        scope="problem",
        sentence="learning curves of the best configurations",
        place=30,
        plot=_alone("train_seconds"),
    ),
    FigureEntry(
        name="loss-against-updates",
        scope="problem",
        sentence="the same against updates",
        place=40,
        plot=_alone("update"),
    ),
    FigureEntry(
        name="accuracy-against-seconds",
        scope="problem",
        sentence="test accuracy of the best",
        place=50,
        plot=_alone("train_seconds", accuracy=True),
    ),
    FigureEntry(
        name="accuracy-against-updates",
        scope="problem",
        sentence="the same against updates",
        place=60,
        plot=_alone("update", accuracy=True),
    ),
)
