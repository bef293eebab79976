"""What a smaller budget would have shown: the slider's data, and the best loss at every place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from kftune.analysis.stored.curves import Across
from kftune.analysis.stored.results import FileResults
from kftune.analysis.tuning.budget import StudyOverBudget, budget_places, over_budget, tuned_for
from kftune.dashboard.figures._arrays import floats, wholes
from kftune.dashboard.figures._entry import FigureEntry
from kftune.dashboard.figures.sorted_losses import SYMBOLS, failed_at
from kftune.dashboard.figures.style import INK, OptimizerStyle, in_figure, layout, optimizer_styles, value_axis
from kftune.wording import duration, loss, number, objective_title

__all__ = ["budget_across", "place_names", "plot_best_over_budget", "slider_data", "studies_over_budget"]

_X_TITLES: Mapping[Across, str] = {"train_seconds": "budget, training time (s)", "update": "budget, parameter updates"}
_KINDS = tuple(SYMBOLS)
_FEW, _MANY_TRIALS = 21, 3000
_PLACES = 41


def budget_across(file: FileResults) -> Across:
    """The unit of the file's budget."""
    return "train_seconds" if tuned_for(file) is not None or tuned_for(file, across="update") is None else "update"


def studies_over_budget(file: FileResults, problem: str) -> list[StudyOverBudget]:
    """Every study of a problem at equally spaced places, fewer of them where there are many trials."""
    across = budget_across(file)
    n_trials = sum(len(study.trials) for study in file.of_problem(problem))
    places = budget_places(file, across=across, n=_FEW if n_trials > _MANY_TRIALS else _PLACES)
    if len(set(places)) < 2:
        return []
    found = [over_budget(study, places[1:], across=across) for study in file.of_problem(problem)]
    return [study for study in found if study.trials]


def place_names(study: StudyOverBudget) -> list[str]:
    """Readings of the slider."""
    if study.across == "train_seconds":
        return [duration(place) for place in study.at]
    return [f"{number(place)} updates" for place in study.at]


def plot_best_over_budget(
    file: FileResults,
    problem: str,
    *,
    at: float | None = None,
    styles: Mapping[str, OptimizerStyle] | None = None,
    over: Sequence[StudyOverBudget] | None = None,
) -> go.Figure | None:
    """Each optimizer's lowest loss at every budget: where lines cross, the answer depends on the time there is.

    Args:
        file: with curves.
        problem: label of one of its problems.
        at: a budget to mark with a line, as the page does where its slider stands.
        styles: of the optimizers; by default by the order of the file's optimizers' names.
        over: from :func:`studies_over_budget`, if it is known already.

    Returns:
        None while no trial has a loss.
    """
    studies = studies_over_budget(file, problem) if over is None else over
    values = [value for study in studies for value in study.best_losses if not math.isnan(value)]
    if not values:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    what = objective_title(file.objective)
    figure = go.Figure(layout=layout(x_title=_X_TITLES[studies[0].across], y_title=f"lowest {what}"))
    for study in studies:
        style = styles[study.optimizer]
        known = [i for i, trial in enumerate(study.best) if trial is not None]
        figure.add_trace(
            go.Scatter(
                x=floats(study.at[i] for i in known),
                y=floats(study.best_losses[i] for i in known),
                mode="lines",
                name=in_figure(study.optimizer),
                customdata=wholes(study.best[i] or 0 for i in known),
                meta={
                    "optimizer": study.optimizer,
                    "study": study.study,
                    "more": f"at budget %{{x:.4g}}: {what} %{{y:.4g}}",
                },
                # Between two evaluations nothing new is known.
                line={"color": style.colour, "dash": style.dash, "width": 2, "shape": "hv"},
            )
        )
    figure.update_yaxes(value_axis(values))
    figure.update_xaxes(range=[0, 1.02 * studies[0].at[-1]])
    if at is not None:
        figure.add_vline(at, line={"color": INK, "width": 1.5, "dash": "dot"})
    return figure


def slider_data(file: FileResults, problem: str, over: Sequence[StudyOverBudget], *, is_log: bool) -> dict[str, Any]:
    """What the page needs to show any place of the slider; see ``page.js``."""
    finite = [float(study.losses[np.isfinite(study.losses)].max()) for study in over if np.isfinite(study.losses).any()]
    return {
        "objective": objective_title(file.objective),
        "times": list(over[0].at),
        "places": place_names(over[0]),
        "symbols": list(SYMBOLS.values()),
        "isLog": is_log,
        "worst": max(finite, default=1.0),
        "line": INK,
        "studies": [_study_data(file, problem, study) for study in over],
    }


def _study_data(file: FileResults, problem: str, over: StudyOverBudget) -> dict[str, Any]:
    (study,) = [study for study in file.of_problem(problem) if study.record.study == over.study]
    # A trial without a curve, such as one that crashed, was started too: it stands at the end, failed from the start.
    with_curve = set(over.trials)
    by_number = {trial.trial.number: trial for trial in study.finished}
    trials = [by_number[number] for number in dict.fromkeys((*over.trials, *by_number))]
    n_without = len(trials) - len(with_curve)
    failed = [
        failed_at(trial, budget=over.at[-1], across=over.across) if trial.trial.number in with_curve else 0.0
        for trial in trials
    ]
    return {
        "optimizer": over.optimizer,
        "study": over.study,
        "numbers": wholes(trial.trial.number for trial in trials),
        "startup": np.array([trial.is_startup for trial in trials], dtype=np.uint8),
        "failedAt": floats(failed),
        "kind": np.array([_KINDS.index(trial.failure) for trial in trials], dtype=np.uint8),
        "values": [floats([*row.tolist(), *[None] * n_without]) for row in over.losses],
        "best": list(over.best),
        "bestValues": floats(over.best_losses),
        "bestLosses": [
            loss(value) if trial is not None else "" for value, trial in zip(over.best_losses, over.best, strict=True)
        ],
    }


ENTRIES = (
    FigureEntry(
        name="best-over-budget",
        scope="problem",
        sentence="lowest loss at every budget up to the study's",
        place=70,
        plot=lambda r: plot_best_over_budget(r.file, r.problem, at=r.at, styles=r.styles),
        has_at=True,
    ),
)
