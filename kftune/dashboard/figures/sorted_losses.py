"""Sorted losses: how good an optimizer is over all configurations that were tried, not only at its luckiest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import plotly.graph_objects as go

from kftune.analysis.stored.curves import Across
from kftune.analysis.stored.results import FileResults, StudyResults, TrialResults
from kftune.analysis.tuning.budget import over_budget, tuned_for
from kftune.dashboard.figures._arrays import floats, visible, wholes
from kftune.dashboard.figures._entry import FigureEntry
from kftune.dashboard.figures.style import (
    MUTED,
    OptimizerStyle,
    in_figure,
    label_level,
    layout,
    optimizer_styles,
    value_axis,
)
from kftune.results import Outcome, RunResult
from kftune.wording import duration, objective_title

__all__ = ["SYMBOLS", "failed_at", "mark_size", "mark_untrained", "plot_sorted_losses"]

SYMBOLS: Mapping[Outcome | None, str] = {
    None: "circle",
    Outcome.DIVERGED: "x",
    Outcome.OUT_OF_MEMORY: "square",
    Outcome.TIMED_OUT: "triangle-up",
    Outcome.CRASHED: "diamond",
    Outcome.PRUNED: "triangle-down",
}
"""Marker of a trial, by the gravest failure among its runs; start-up trials have the open form."""


_Stood: TypeAlias = dict[int, tuple[float | None, Outcome | None]]
"""Number of a trial → its value, if it has one, and the gravest failure among its runs."""


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
    file: FileResults,
    problem: str,
    *,
    at: float | None = None,
    styles: Mapping[str, OptimizerStyle] | None = None,
) -> go.Figure | None:
    """Values of all finished trials of one problem, sorted, one line per optimizer (Fig. 5 of the thesis).

    Args:
        file: the results of a study file.
        problem: label of one of its problems.
        at: seconds of training, at most the budget: as the trials stood then, which needs curves; None: at their end.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None while no trial has a value to be drawn at.
    """
    info = _get_sorted_losses_info(file, problem, at=at)
    values = [trial.value for trials in info.optimizers.values() for trial in trials]
    if not values:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    what = objective_title(info.objective)
    figure = go.Figure(
        layout=layout(
            x_title="share of the started trials (%)",
            y_title=what if at is None else f"{what} after {duration(at)}",
        )
    )
    drawn = values if info.untrained is None else [*values, info.untrained]
    y_axis = value_axis(drawn)
    is_log = y_axis["type"] == "log"
    for optimizer, trials in info.optimizers.items():
        if trials:
            trace = _line(optimizer, info.studies[optimizer], trials, styles[optimizer], is_log=is_log)
            if at is not None:
                trace.meta = {**trace.meta, "more": f"after {duration(at)} {what} %{{y:.4g}}"}
            figure.add_trace(trace)
    figure.update_xaxes(range=[0, 103], tick0=0, dtick=20)
    figure.update_yaxes(y_axis)
    if info.untrained is not None:
        mark_untrained(figure, info.untrained, is_log=is_log)
    return figure


def mark_untrained(figure: go.Figure, value: float, *, is_log: bool) -> None:
    """A line at the loss before training, where that is finite."""
    if not math.isfinite(value):
        return
    figure.add_hline(y=value, line={"color": MUTED, "width": 1, "dash": "dot"}, layer="below")
    level = math.log10(value) if is_log else value  # where a shape takes a value, an annotation takes its logarithm
    label_level(figure, "untrained", level, side="left")


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


def failed_at(trial: TrialResults, *, budget: float, across: Across = "train_seconds") -> float:
    """Where the first of its runs failed as the trial did, at most the budget; inf if it did not."""
    if trial.failure is None:
        return math.inf
    ends = [_ended(run.result, across) for run in trial.runs if run.result.outcome is trial.failure]
    # The last step goes a little past the budget.
    return min(budget, *ends) if ends else math.inf


def _ended(result: RunResult, across: Across) -> float:
    return float(result.train_seconds if across == "train_seconds" else result.updates)


def _get_sorted_losses_info(file: FileResults, problem: str, *, at: float | None = None) -> _SortedLossesInfo:
    """The trials of each optimizer by value; of equal ones those without failure first, those without value last.

    Trials still running are left out: how they end is not known.
    """
    untrained = [value for (label, _), value in file.untrained.items() if label == problem]
    mean_untrained = sum(untrained) / len(untrained) if untrained else None
    studies = file.of_problem(problem)
    budget = tuned_for(file) or math.inf
    stood = {study.record.study: _final(study) if at is None else _stood_at(study, at, budget) for study in studies}
    values = [v for of_study in stood.values() for v, _ in of_study.values() if v is not None]
    worst = max([*values, *untrained], default=math.nan)
    return _SortedLossesInfo(
        objective=file.objective,
        untrained=mean_untrained,
        optimizers={s.record.optimizer: _sorted_trials(s, stood[s.record.study], worst) for s in studies},
        studies={study.record.optimizer: study.record.study for study in studies},
    )


def _final(study: StudyResults) -> _Stood:
    return {trial.trial.number: (trial.trial.value, trial.failure) for trial in study.finished}


def _stood_at(study: StudyResults, at: float, budget: float) -> _Stood:
    """What was last measured then. One without a curve has no value, and counts as failed from the start."""
    over = over_budget(study, [at])
    losses = dict(zip(over.trials, over.losses[0].tolist(), strict=True))
    found: _Stood = {}
    for trial in study.finished:
        number = trial.trial.number
        has_failed = number not in losses or failed_at(trial, budget=budget) <= at
        value = losses.get(number, math.nan)
        found[number] = (None if math.isnan(value) else value, trial.failure if has_failed else None)
    return found


def _sorted_trials(study: StudyResults, stood: _Stood, worst: float) -> list[_SortedTrial]:
    if math.isnan(worst):
        return []
    startup = {trial.trial.number: trial.is_startup for trial in study.finished}
    order = sorted(stood, key=lambda number: _sort_key(number, *stood[number]))
    found = []
    for position, number in enumerate(order, start=1):
        value, failure = stood[number]
        found.append(
            _SortedTrial(
                trial=number,
                share=position / len(order),
                value=worst if value is None else value,
                failure=failure,
                is_startup=startup[number],
            )
        )
    return found


def _sort_key(number: int, value: float | None, failure: Outcome | None) -> tuple[bool, float, bool, int]:
    return (value is None, value if value is not None else 0.0, failure is not None, number)


ENTRIES = (
    FigureEntry(
        name="sorted-losses",
        scope="problem",
        sentence="losses of all trials, sorted",
        place=20,
        plot=lambda r: plot_sorted_losses(r.file, r.problem, at=r.at, styles=r.styles),
        has_at=True,
    ),
)
