"""Which hyperparameters mattered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import plotly.graph_objects as go

from kftune.analysis.stored.results import StudyResults
from kftune.analysis.tuning.importance import Importance, hyperparameter_importances
from kftune.dashboard.figures._entry import FigureEntry
from kftune.dashboard.figures.style import INK, OptimizerStyle, axis, in_figure, layout

__all__ = ["importances", "plot_importance"]

_MOST_TRIALS = 40
_MOST_RESAMPLES, _LEAST_RESAMPLES, _ON_PAGE = 10, 4, 25


def importances(study: StudyResults, *, of: int = 1) -> list[Importance]:
    """fANOVA importances, quick enough for a page: of many trials every so-manieth counts.

    Args:
        study: one optimizer on one problem.
        of: how many studies are to be looked at; of many each has fewer resamples.
    """
    finished = study.finished
    step = -(-len(finished) // _MOST_TRIALS)
    fewer = replace(study, trials=tuple(finished[::step])) if step > 1 else study
    n_resamples = max(_LEAST_RESAMPLES, min(_MOST_RESAMPLES, _ON_PAGE // max(1, of)))
    return hyperparameter_importances(fewer, n_resamples=n_resamples)


def plot_importance(
    study: StudyResults, style: OptimizerStyle, found: Sequence[Importance] | None = None
) -> go.Figure | None:
    """Share of the loss's variance that each hyperparameter explains alone, with its 90 % range over resamples.

    Args:
        study: one optimizer on one problem.
        style: of the optimizer.
        found: from :func:`importances`, if it is known already.

    Returns:
        None with fewer than 8 settled trials.
    """
    shown = list(importances(study) if found is None else found)
    if not shown:
        return None
    names = [in_figure(entry.sampled_name) for entry in shown]
    return go.Figure(
        data=go.Bar(
            x=[100 * entry.importance for entry in shown],
            y=names,
            orientation="h",
            marker={"color": style.colour, "opacity": 0.65},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [100 * max(0.0, entry.high - entry.importance) for entry in shown],
                "arrayminus": [100 * max(0.0, entry.importance - entry.low) for entry in shown],
                "color": INK,
                "thickness": 1.5,
                "width": 4,
            },
            hovertemplate="%{y}: %{x:.0f} %<extra></extra>",
        ),
        layout=layout(
            x_title="share of the loss's variance (%)",
            y_title="",
            xaxis=axis("share of the loss's variance (%)", rangemode="tozero"),
            yaxis=axis("hyperparameter", type="category", autorange="reversed"),
            height=320,
            bargap=0.45,
        ),
    )


ENTRIES = (
    FigureEntry(
        name="importance",
        scope="optimizer",
        sentence="which hyperparameters mattered (fANOVA)",
        place=130,
        plot=lambda r: plot_importance(r.study, r.style),
    ),
)
