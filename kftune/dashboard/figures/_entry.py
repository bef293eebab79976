"""What a figure is to those who want one alone: what it is about, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import plotly.graph_objects as go

from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.dashboard.figures.style import OptimizerStyle

__all__ = ["FigureEntry", "Request", "Scope"]

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


@dataclass(frozen=True, kw_only=True)
class FigureEntry:
    """One figure of the registry.

    Attributes:
        name: for ``kftune figure NAME``.
        scope: what it is about.
        sentence: what it shows.
        place: figures are listed by their places, then by their names. Those of kftune are whole tens, so that others
            can stand between them.
        plot: draws it, with titles to its axes; None where there is nothing to draw.
        choices: what ``of`` may be.
        has_at: whether it depends on ``at``.
    """

    name: str
    scope: Scope
    sentence: str
    place: float
    plot: Callable[[Request], go.Figure | None]
    choices: Callable[[Request], list[str]] = lambda _: []
    has_at: bool = False
