"""Sorted losses: how good an optimizer is over all configurations that were tried, not only at its luckiest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import plotly.graph_objects as go

from kftune.analysis.results import FileResults, StudyResults, TrialResults
from kftune.dashboard.figures._arrays import floats, visible, wholes
from kftune.dashboard.figures._style import MUTED, OptimizerStyle, layout, optimizer_styles, value_axis
from kftune.dashboard.formatting import in_figure, objective_title
from kftune.training.results import Outcome

__all__ = ["SYMBOLS", "mark_size", "mark_untrained", "plot_sorted_losses"]

SYMBOLS: Mapping[Outcome | None, str] = {
    None: "circle",
    Outcome.DIVERGED: "x",
    Outcome.OUT_OF_MEMORY: "square",
    Outcome.TIMED_OUT: "triangle-up",
    Outcome.CRASHED: "diamond",
    Outcome.PRUNED: "triangle-down",
}
"""Marker of a trial, by the gravest failure among its runs; start-up trials have the open form."""


class _SortedTrial(NamedTuple):
    """One trial in the order of values.

    Attributes:
        trial: its number.
        share: of the started trials up to and including it, in (0, 1].
        value: what it is drawn at: its value or, for one without, the worst there is.
        failure: gravest failure among its runs; pruned if it had none but was.
        is_startup: drawn at random.
    """

    trial: int
    share: float
    value: float
    failure: Outcome | None
    is_startup: bool


class _SortedLossesInfo(NamedTuple):
    """All optimizers of one problem.

    Attributes:
        objective: what the values are.
        untrained: its mean over repeats before training; None if unknown.
        optimizers: label → trials, best first.
        studies: label → name of its study.
    """

    objective: str
    untrained: float | None
    optimizers: dict[str, list[_SortedTrial]]
    studies: dict[str, str]


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
    drawn = values if info.untrained is None else [*values, info.untrained]
    y_axis = value_axis(drawn)
    is_log = y_axis["type"] == "log"
    for optimizer, trials in info.optimizers.items():
        if trials:
            figure.add_trace(_line(optimizer, info.studies[optimizer], trials, styles[optimizer], is_log=is_log))
    figure.update_xaxes(range=[0, 103], tick0=0, dtick=20)
    figure.update_yaxes(y_axis)
    if info.untrained is not None:
        mark_untrained(figure, info.untrained, is_log=is_log)
    return figure


def mark_untrained(figure: go.Figure, value: float, *, is_log: bool) -> None:
    """A line at the loss before training."""
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


def _line(optimizer: str, study: str, trials: list[_SortedTrial], style: OptimizerStyle, *, is_log: bool) -> go.Scatter:
    kept = visible(
        [trial.share for trial in trials],
        [math.log(trial.value) if is_log else trial.value for trial in trials],
        [trial.failure for trial in trials],
    )
    drawn = [trials[i] for i in kept]
    return go.Scatter(
        x=floats(100 * trial.share for trial in drawn),
        y=floats(trial.value for trial in drawn),
        mode="lines+markers",
        name=in_figure(optimizer),
        meta={"optimizer": optimizer, "study": study, "more": "among the best %{x:.0f} %"},
        customdata=wholes(trial.trial for trial in drawn),
        line={"color": style.colour, "dash": style.dash, "width": 1.5},
        marker={
            "color": style.colour,
            "symbol": [SYMBOLS[trial.failure] + ("-open" if trial.is_startup else "") for trial in drawn],
            "size": mark_size(len(trials)),
            "line": {"color": style.colour, "width": 1.5},
        },
    )


def mark_size(n_trials: int) -> int:
    """Pixels, so that many marks do not become one."""
    return 8 if n_trials <= 60 else 6 if n_trials <= 250 else 4


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
        optimizers={study.record.optimizer: _sorted_trials(study, worst) for study in studies},
        studies={study.record.optimizer: study.record.study for study in studies},
    )


def _sorted_trials(study: StudyResults, worst: float) -> list[_SortedTrial]:
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
        )
        for position, trial in enumerate(order, start=1)
    ]


def _sort_key(trial: TrialResults) -> tuple[bool, float, bool, int]:
    value = trial.trial.value
    return (value is None, value if value is not None else 0.0, trial.failure is not None, trial.trial.number)
