"""What a panel is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.dashboard.figures.style import OptimizerStyle
from kftune.wording import objective_title

__all__ = ["TOP", "Subject", "nothing_yet"]

TOP = 4
"""How many of an optimizer's best configurations are shown."""


@dataclass(frozen=True)
class Subject:
    """One problem of a study file, and how its optimizers are drawn. Panels about all problems ignore ``problem``."""

    file: FileResults
    problem: str
    styles: Mapping[str, OptimizerStyle]

    @property
    def studies(self) -> list[StudyResults]:
        """Of the problem, in the order of the file."""
        return self.file.of_problem(self.problem)

    @property
    def most_trials(self) -> int:
        """Finished trials of the optimizer that has the most of them."""
        return max((len(study.finished) for study in self.studies), default=0)

    @property
    def what(self) -> str:
        """What is minimised, in words."""
        return objective_title(self.file.objective)


def nothing_yet(subject: Subject) -> str:
    """Why there is nothing to show about a problem."""
    n_finished = sum(len(study.finished) for study in subject.studies)
    if n_finished == 0:
        return "No trial has finished yet."
    return f"No run has ended well (finished trials: {n_finished})."
