"""What the batch size does to the loss and to the cost of a step (Figs. 2 to 4 of the thesis)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import plotly.graph_objects as go

from kftune.analysis.stored.results import FileResults, StudyResults, TrialResults
from kftune.analysis.tuning.budget import over_budget
from kftune.dashboard.figures._arrays import floats, spread_out, wholes
from kftune.dashboard.figures._entry import FigureEntry, Request
from kftune.dashboard.figures.style import OptimizerStyle, in_figure, layout, optimizer_styles, value_axis
from kftune.wording import objective_title

__all__ = [
    "MOST_TRIALS",
    "Batch",
    "common_updates",
    "has_accumulation",
    "plot_inversion_share",
    "plot_loss_against_batch",
]

Batch: TypeAlias = Literal["batch_size", "effective_batch_size"]
_X_TITLES: Mapping[Batch, str] = {
    "batch_size": "batch size (examples in a forward pass{})",
    "effective_batch_size": "effective batch size (examples per update{})",
}
MOST_TRIALS = 300
"""Of an optimizer; of more, some are drawn."""


class _Point(NamedTuple):
    """A trial that ended well."""

    trial: int
    batch: float
    y: float


def has_accumulation(file: FileResults, problem: str) -> bool:
    """Whether any trial's effective batch is not its batch."""
    return any(
        _batch(trial, "effective_batch_size") != _batch(trial, "batch_size")
        for study in file.of_problem(problem)
        for trial in study.finished
    )


def _batch(trial: TrialResults, which: Batch) -> float | None:
    """A number of examples; of batches that grow the mean over the updates made; None if it is not known."""
    names = ("batch_size", "effective_batch_size", "accumulation")
    batch, effective, accumulation = (_size(trial, name) for name in names)
    # As kftune.training.data.batches takes them: of a growing batch the passes grow with it unless both sizes are
    # given.
    is_pass_given = batch is not None and (effective is not None or accumulation is not None)
    if effective is None and batch is not None:
        effective = batch * (accumulation or 1)
    if effective is None or _grows(trial):
        effective = _examples_per_update(trial)
        batch = batch if is_pass_given else effective
    return batch if which == "batch_size" and batch is not None else effective


def _size(trial: TrialResults, name: str) -> float | None:
    size = trial.params.get(name)
    if not isinstance(size, int | float) or isinstance(size, bool):
        return None
    return float(size) if size > 0 else None


def _grows(trial: TrialResults) -> bool:
    return _size(trial, "full_batch_at") is not None


def _examples_per_update(trial: TrialResults) -> float | None:
    results = [run.result for run in trial.runs if run.result.updates > 0 and run.result.examples > 0]
    return fmean(result.examples / result.updates for result in results) if results else None


def _well(study: StudyResults) -> list[TrialResults]:
    """Trials of which every run ended well: a failed run's share of the value is the untrained model's."""
    return [trial for trial in study.ranked() if trial.failure is None]


def _x_title(file: FileResults, problem: str, batch: Batch) -> str:
    grow = any(_grows(trial) for study in file.of_problem(problem) for trial in _well(study))
    return _X_TITLES[batch].format("; the mean where it grows" if grow else "")


def common_updates(file: FileResults, problem: str) -> int:
    """The number of updates that three quarters of the trials that ended well made; 0 if there are none."""
    made = [_updates(trial) for study in file.of_problem(problem) for trial in _well(study)]
    return int(np.quantile(made, 0.25, method="lower")) if made else 0


def _updates(trial: TrialResults) -> int:
    return min(run.result.updates for run in trial.successes)


def plot_loss_against_batch(
    file: FileResults,
    problem: str,
    *,
    batch: Batch,
    at_updates: int | None = None,
    styles: Mapping[str, OptimizerStyle] | None = None,
) -> go.Figure | None:
    """Loss of every trial that ended well against its batch size, after equal seconds or after equal updates.

    Args:
        file: with curves.
        problem: label of one of its problems.
        batch: the batch of a forward pass, or all examples behind an update.
        at_updates: after so many updates (trials that made fewer are left out); None: at the end of the budget.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None if no trial that ended well has a batch size.
    """
    points = [(study, found) for study in file.of_problem(problem) if (found := _losses(study, batch, at_updates))]
    what = objective_title(file.objective)
    y_title = what if at_updates is None else f"{what} after {at_updates} updates"
    y_axis = value_axis(point.y for _, found in points for point in found) if points else {}
    return _figure(file, points, titles=(_x_title(file, problem, batch), y_title), y_axis=y_axis, styles=styles)


def _losses(study: StudyResults, batch: Batch, at_updates: int | None) -> list[_Point]:
    sized = [
        (trial, size)
        for trial in _well(study)
        if (size := _batch(trial, batch)) is not None and (at_updates is None or _updates(trial) >= at_updates)
    ]
    kept = [sized[i] for i in spread_out(len(sized), MOST_TRIALS)]
    losses = {trial.trial.number: trial.trial.value for trial, _ in kept}
    if at_updates is not None:
        only = replace(study, trials=tuple(trial for trial, _ in kept))
        over = over_budget(only, [float(at_updates)], across="update")
        losses = dict(zip(over.trials, over.losses[0].tolist(), strict=True))
    return [
        _Point(trial.trial.number, size, loss)
        for trial, size in kept
        if (loss := losses.get(trial.trial.number)) is not None and math.isfinite(loss)
    ]


def plot_inversion_share(
    file: FileResults, problem: str, *, styles: Mapping[str, OptimizerStyle] | None = None
) -> go.Figure | None:
    """Share of the training time that goes into inverting curvature, against the effective batch (Fig. 3, right).

    Args:
        file: the results of a study file.
        problem: label of one of its problems.
        styles: of the optimizers; by default by the order of the file's optimizers' names.

    Returns:
        None if no optimizer inverts anything.
    """
    points = []
    for study in file.of_problem(problem):
        found = [
            _Point(trial.trial.number, size, 100 * share)
            for trial in _well(study)
            if (size := _batch(trial, "effective_batch_size")) is not None and (share := _inverting(trial)) is not None
        ]
        if any(point.y > 0 for point in found):
            points.append((study, [found[i] for i in spread_out(len(found), MOST_TRIALS)]))
    title = "time spent inverting (%)"
    titles = (_x_title(file, problem, "effective_batch_size"), title)
    return _figure(file, points, titles=titles, y_axis={"type": "linear", "rangemode": "tozero"}, styles=styles)


def _inverting(trial: TrialResults) -> float | None:
    seconds = sum(run.result.train_seconds for run in trial.successes)
    return sum(run.result.phase_seconds.get("inversion", 0.0) for run in trial.successes) / seconds if seconds else None


def _figure(
    file: FileResults,
    points: Sequence[tuple[StudyResults, Sequence[_Point]]],
    *,
    titles: tuple[str, str],
    y_axis: Mapping[str, Any],
    styles: Mapping[str, OptimizerStyle] | None,
) -> go.Figure | None:
    drawn = [point for _, found in points for point in found]
    if not drawn:
        return None
    styles = styles if styles is not None else optimizer_styles(file.optimizers)
    figure = go.Figure(layout=layout(x_title=titles[0], y_title=titles[1]))
    for study, found in points:
        style = styles[study.record.optimizer]
        figure.add_trace(
            go.Scatter(
                x=floats(point.batch for point in found),
                y=floats(point.y for point in found),
                mode="markers",
                name=in_figure(study.record.optimizer),
                customdata=wholes(point.trial for point in found),
                meta={"optimizer": study.record.optimizer, "study": study.record.study, "more": "here %{y:.4g}"},
                marker={"color": style.colour, "symbol": style.symbol, "size": 7 if len(drawn) < 200 else 5},
            )
        )
    figure.update_yaxes(dict(y_axis))
    figure.update_xaxes(value_axis(point.batch for point in drawn))
    return figure


def _at_updates(request: Request) -> go.Figure | None:
    updates = common_updates(request.file, request.problem)
    if not updates:
        return None
    return plot_loss_against_batch(
        request.file, request.problem, batch="effective_batch_size", at_updates=updates, styles=request.styles
    )


ENTRIES = (
    FigureEntry(
        name="loss-against-batch",
        scope="problem",
        sentence="final loss against the effective batch size, at equal seconds",
        place=150,
        plot=lambda r: plot_loss_against_batch(r.file, r.problem, batch="effective_batch_size", styles=r.styles),
    ),
    FigureEntry(
        name="loss-against-batch-updates",
        scope="problem",
        sentence="the same at equal updates",
        place=160,
        plot=_at_updates,
    ),
    FigureEntry(
        name="inversion-share",
        scope="problem",
        sentence="share of the time spent inverting, against the batch size",
        place=170,
        plot=lambda r: plot_inversion_share(r.file, r.problem, styles=r.styles),
    ),
)
