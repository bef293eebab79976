"""Every figure by name, for those who want one alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import plotly.graph_objects as go

from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.analysis.tuning.spread import optimizer_spreads
from kftune.dashboard.figures.across_problems import plot_best_regions, plot_performance_profiles, shared_dimensions
from kftune.dashboard.figures.anatomy import plot_reading, plot_step_against_sgd, plot_step_anatomy, readings_there
from kftune.dashboard.figures.batch_size import common_updates, plot_inversion_share, plot_loss_against_batch
from kftune.dashboard.figures.budget import plot_best_over_budget
from kftune.dashboard.figures.hyperparameters import map_pairs, plot_map, plot_parallel_coordinates, plot_slices
from kftune.dashboard.figures.importance import plot_importance
from kftune.dashboard.figures.learning_curves import measures, plot_learning_curves
from kftune.dashboard.figures.machine import plot_machine
from kftune.dashboard.figures.sorted_losses import plot_sorted_losses
from kftune.dashboard.figures.style import OptimizerStyle
from kftune.dashboard.figures.tunability import plot_best_of_k, plot_best_so_far
from kftune.dashboard.figures.verdict import plot_verdict

__all__ = ["FIGURES", "FigureKind", "Request", "Scope"]

Scope: TypeAlias = Literal["file", "problem", "optimizer", "dimension", "pair", "reading"]
"""What a figure is about: a study file; one of its problems; an optimizer on a problem; or, besides, one hyperparameter
across problems, two hyperparameters of an optimizer, one reading of the optimizers."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be drawn. What a figure's scope does not need is ignored.

    ``of`` is the hyperparameter or reading, ``at`` the seconds of training at which losses are looked at: None for the
    whole budget.
    """

    file: FileResults
    problem: str
    optimizer: str
    styles: Mapping[str, OptimizerStyle]
    of: str = ""
    at: float | None = None

    @property
    def study(self) -> StudyResults:
        """Of the optimizer on the problem."""
        (study,) = [study for study in self.file.of_problem(self.problem) if study.record.optimizer == self.optimizer]
        return study

    @property
    def style(self) -> OptimizerStyle:
        """Of the optimizer."""
        return self.styles[self.optimizer]


@dataclass(frozen=True)
class FigureKind:
    """A figure: what it is about, what it shows, how it is drawn, what ``of`` may be, and whether it has an ``at``."""

    scope: Scope
    sentence: str
    plot: Callable[[Request], go.Figure | None]
    choices: Callable[[Request], list[str]] = lambda _: []
    has_at: bool = False


def _at_updates(request: Request) -> go.Figure | None:
    updates = common_updates(request.file, request.problem)
    if not updates:
        return None
    return plot_loss_against_batch(
        request.file, request.problem, batch="effective_batch_size", at_updates=updates, styles=request.styles
    )


def _accuracy(across: Literal["train_seconds", "update"]) -> Callable[[Request], go.Figure | None]:
    def plot(request: Request) -> go.Figure | None:
        if "accuracy" not in measures(request.file, request.problem):
            return None
        return plot_learning_curves(
            request.file, request.problem, across=across, measure="accuracy", styles=request.styles
        )

    return plot


def _loss(across: Literal["train_seconds", "update"]) -> Callable[[Request], go.Figure | None]:
    def plot(request: Request) -> go.Figure | None:
        measure = measures(request.file, request.problem)[0]
        return plot_learning_curves(
            request.file, request.problem, across=across, measure=measure, styles=request.styles
        )

    return plot


def _pairs(request: Request) -> list[str]:
    return [",".join(pair) for pair in map_pairs(request.study)]


def _map(request: Request) -> go.Figure | None:
    return next((plot_map(request.study, p) for p in map_pairs(request.study) if ",".join(p) == request.of), None)


FIGURES: Mapping[str, FigureKind] = {
    "verdict": FigureKind(
        "problem",
        "confirmed loss of every optimizer with its 95 % interval, and the tuned loss",
        lambda r: plot_verdict(r.file, r.problem, styles=r.styles),
    ),
    "sorted-losses": FigureKind(
        "problem",
        "losses of all trials, sorted",
        lambda r: plot_sorted_losses(r.file, r.problem, at=r.at, styles=r.styles),
        has_at=True,
    ),
    "loss-against-seconds": FigureKind("problem", "learning curves of the best configurations", _loss("train_seconds")),
    "loss-against-updates": FigureKind("problem", "the same against updates", _loss("update")),
    "accuracy-against-seconds": FigureKind("problem", "test accuracy of the best", _accuracy("train_seconds")),
    "accuracy-against-updates": FigureKind("problem", "the same against updates", _accuracy("update")),
    "best-over-budget": FigureKind(
        "problem",
        "lowest loss at every budget up to the study's",
        lambda r: plot_best_over_budget(r.file, r.problem, at=r.at, styles=r.styles),
        has_at=True,
    ),
    "best-of-k": FigureKind(
        "problem",
        "loss to expect from the best of k random configurations",
        lambda r: plot_best_of_k(r.file, r.problem, styles=r.styles),
    ),
    "best-so-far": FigureKind(
        "problem",
        "best loss found against trials",
        lambda r: plot_best_so_far(r.file, r.problem, against="trials", styles=r.styles),
    ),
    "best-so-far-seconds": FigureKind(
        "problem",
        "best loss found against all seconds spent",
        lambda r: plot_best_so_far(r.file, r.problem, against="spent_seconds", styles=r.styles),
    ),
    "slices": FigureKind(
        "optimizer", "loss against each hyperparameter, with the box", lambda r: plot_slices(r.study, r.style)
    ),
    "parallel-coordinates": FigureKind(
        "optimizer", "all trials over all hyperparameters", lambda r: plot_parallel_coordinates(r.study)
    ),
    "importance": FigureKind(
        "optimizer", "which hyperparameters mattered (fANOVA)", lambda r: plot_importance(r.study, r.style)
    ),
    "map": FigureKind("pair", "trials in the plane of two hyperparameters", _map, _pairs),
    "loss-against-batch": FigureKind(
        "problem",
        "final loss against the effective batch size, at equal seconds",
        lambda r: plot_loss_against_batch(r.file, r.problem, batch="effective_batch_size", styles=r.styles),
    ),
    "loss-against-batch-updates": FigureKind("problem", "the same at equal updates", _at_updates),
    "inversion-share": FigureKind(
        "problem",
        "share of the time spent inverting, against the batch size",
        lambda r: plot_inversion_share(r.file, r.problem, styles=r.styles),
    ),
    "step-anatomy": FigureKind(
        "problem", "where the time of an update goes", lambda r: plot_step_anatomy(r.file, r.problem)
    ),
    "step-against-sgd": FigureKind(
        "problem",
        "time of an update, as a multiple of SGD's",
        lambda r: plot_step_against_sgd(r.file, r.problem, styles=r.styles),
    ),
    "reading": FigureKind(
        "reading",
        "damping, momentum or KL-clip activity over time",
        lambda r: plot_reading(r.file, r.problem, r.of, styles=r.styles),
        lambda r: readings_there(r.file, r.problem),
    ),
    "best-regions": FigureKind(
        "dimension",
        "where the best values of a hyperparameter lie on each problem",
        lambda r: plot_best_regions(r.file, r.of, styles=r.styles),
        lambda r: shared_dimensions(optimizer_spreads([r.file])),
    ),
    "performance-profiles": FigureKind(
        "file",
        "share of the problems solved within a multiple of the fastest time",
        lambda r: plot_performance_profiles(r.file, styles=r.styles),
    ),
    "machine": FigureKind(
        "file", "how fast the machine was during every run", lambda r: plot_machine(r.file, styles=r.styles)
    ),
}
