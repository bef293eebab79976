"""Sorted losses: how good an optimizer is over all configurations that were tried, not only at its luckiest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import plotly.graph_objects as go

from kftune.analysis.results import FileResults, StudyResults, TrialResults
from kftune.dashboard.figures._style import MUTED, OptimizerStyle, layout, optimizer_styles, value_axis
from kftune.dashboard.formatting import hover_params, in_figure, loss, objective_title, outcome_title
from kftune.training.results import Outcome

__all__ = ["SYMBOLS", "plot_sorted_losses"]

SYMBOLS: Mapping[Outcome | None, str] = {
    None: "circle",
    Outcome.DIVERGED: "x",
    Outcome.OUT_OF_MEMORY: "square",
    Outcome.TIMED_OUT: "triangle-up",
    Outcome.CRASHED: "diamond",
}
"""Marker of a trial, by the gravest failure among its runs; start-up trials have the open form."""


class _SortedTrial(NamedTuple):
    """One trial in the order of values.

    Attributes:
        trial: its number.
        share: of the started trials up to and including it, in (0, 1].
        value: what it is drawn at: its value or, for one without, the worst there is.
        failure: gravest failure among its runs.
        is_startup: drawn at random.
        hover: text for the reader who points at it.
    """

    trial: int
    share: float
    value: float
    failure: Outcome | None
    is_startup: bool
    hover: str


class _SortedLossesInfo(NamedTuple):
    """All optimizers of one problem.

    Attributes:
        objective: what the values are.
        untrained: its mean over repeats before training; None if unknown.
        optimizers: label → trials, best first.
    """

    objective: str
    untrained: float | None
    optimizers: dict[str, list[_SortedTrial]]


def plot_sorted_losses(
    file: FileResults, problem: str, *, styles: Mapping[str, OptimizerStyle] | None = None
) -> go.Figure | None:
    """Values of all finished trials of one problem, sorted, one line per optimizer (Fig. 5 of the thesis).

    Args:
        file: the results of a study file.
        problem: label of one of its problems.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None while no trial has a value to be drawn at.
    """
    info = _get_sorted_losses_info(file, problem)
    values = [trial.value for trials in info.optimizers.values() for trial in trials]
    if not values:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    figure = go.Figure(
        layout=layout(x_title="share of the started trials (%)", y_title=objective_title(info.objective))
    )
    for optimizer, trials in info.optimizers.items():
        if trials:
            figure.add_trace(_line(optimizer, trials, styles[optimizer]))
    figure.update_xaxes(range=[0, 103], tick0=0, dtick=20)
    drawn = values if info.untrained is None else [*values, info.untrained]
    y_axis = value_axis(drawn)
    figure.update_yaxes(y_axis)
    if info.untrained is not None:
        _mark_untrained(figure, info.untrained, is_log=y_axis["type"] == "log")
    return figure


def _mark_untrained(figure: go.Figure, value: float, *, is_log: bool) -> None:
    figure.add_hline(y=value, line={"color": MUTED, "width": 1, "dash": "dot"}, layer="below")
    figure.add_annotation(
        text="untrained",
        font={"color": MUTED, "size": 11},
        xref="paper",
        x=0,
        xanchor="left",
        y=math.log10(value) if is_log else value,  # where a shape takes a value, an annotation takes its logarithm
        yanchor="bottom",
        showarrow=False,
    )


def _line(optimizer: str, trials: list[_SortedTrial], style: OptimizerStyle) -> go.Scatter:
    size = 8 if len(trials) <= 60 else 6 if len(trials) <= 250 else 4
    return go.Scatter(
        x=[100 * trial.share for trial in trials],
        y=[trial.value for trial in trials],
        mode="lines+markers",
        name=in_figure(optimizer),
        meta={"optimizer": optimizer},
        line={"color": style.colour, "dash": style.dash, "width": 1.5},
        marker={
            "color": style.colour,
            "symbol": [SYMBOLS[trial.failure] + ("-open" if trial.is_startup else "") for trial in trials],
            "size": size,
            "line": {"color": style.colour, "width": 1.5},
        },
        hovertext=[trial.hover for trial in trials],
        hoverinfo="text",
    )


def _get_sorted_losses_info(file: FileResults, problem: str) -> _SortedLossesInfo:
    """The trials of each optimizer by value; of equal ones those without failure first, those without value last.

    Trials still running are left out: how they end is not known.
    """
    untrained = [value for (label, _), value in file.untrained.items() if label == problem]
    mean_untrained = sum(untrained) / len(untrained) if untrained else None
    studies = file.of_problem(problem)
    values = [v for study in studies for trial in study.finished if (v := trial.trial.value) is not None]
    worst = max([*values, *untrained], default=math.nan)
    return _SortedLossesInfo(
        objective=file.objective,
        untrained=mean_untrained,
        optimizers={study.record.optimizer: _sorted_trials(study, worst, file.objective) for study in studies},
    )


def _sorted_trials(study: StudyResults, worst: float, objective: str) -> list[_SortedTrial]:
    if math.isnan(worst):
        return []
    finished = study.finished
    order = sorted(finished, key=_sort_key)
    return [
        _SortedTrial(
            trial=trial.trial.number,
            share=position / len(order),
            value=worst if trial.trial.value is None else trial.trial.value,
            failure=trial.failure,
            is_startup=trial.is_startup,
            hover=_hover(study.record.optimizer, trial, position, len(order), objective),
        )
        for position, trial in enumerate(order, start=1)
    ]


def _sort_key(trial: TrialResults) -> tuple[bool, float, bool, int]:
    value = trial.trial.value
    return (value is None, value if value is not None else 0.0, trial.failure is not None, trial.trial.number)


def _hover(optimizer: str, trial: TrialResults, position: int, n_trials: int, objective: str) -> str:
    value = "no value" if trial.trial.value is None else loss(trial.trial.value)
    lines = [
        f"<b>{in_figure(optimizer)}</b>, trial {trial.trial.number}{' (start-up)' if trial.is_startup else ''}",
        f"{objective_title(objective)} {value}, place {position} of {n_trials}",
    ]
    outcomes = [outcome_title(run.result.outcome.value) for run in trial.runs]
    if trial.failure is not None and outcomes:
        lines.append(f"runs: {', '.join(outcomes)}")
    return "<br>".join([*lines, hover_params(trial.params)])
