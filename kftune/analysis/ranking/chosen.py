"""The one configuration to use of a study: the confirmed one where there is one, else the search's best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from kftune.analysis.ranking.verdict import verdicts
from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.analysis.trust.confirmed import confirmed_results, unconfirmed_better

__all__ = ["ChosenConfiguration", "chosen_configurations", "winners"]


@dataclass(frozen=True, kw_only=True)
class ChosenConfiguration:
    """A configuration, ready to be used elsewhere.

    Attributes:
        study: full name.
        problem: label.
        optimizer: label.
        optimizer_name: its name in the registry, or its target; the label where neither is stored.
        problem_name: likewise of the problem.
        problem_args: the problem's own arguments.
        trial: number.
        objective: what the losses are.
        tuned: the trial's value in the search.
        confirmed: its mean on fresh seeds; None if it was not confirmed.
        params: resolved hyperparameters, fixed ones included.
        better_trial: the search's best, where it is none of the confirmed ones but came after them; else None.
    """

    study: str
    problem: str
    optimizer: str
    optimizer_name: str
    problem_name: str
    problem_args: Mapping[str, Any]
    trial: int
    objective: str
    tuned: float | None
    confirmed: float | None
    params: Mapping[str, Any]
    better_trial: int | None = None

    @property
    def described(self) -> str:
        """Where it comes from and how good it is, in a line."""
        objective = self.objective.replace("_", " ")
        tuned = "no value" if self.tuned is None else f"{objective} {self.tuned:.4g}"
        if self.confirmed is None:
            return f"{self.study}, trial {self.trial}: {tuned} in the search, not confirmed"
        text = f"{self.study}, trial {self.trial}: {objective} {self.confirmed:.4g} on fresh seeds"
        if self.better_trial is None:
            return text
        return f"{text}; trial {self.better_trial} is better in the search and not confirmed: kftune confirm again"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def chosen_configurations(file: FileResults) -> list[ChosenConfiguration]:
    """One per study with a usable trial, in the order of the file; ``file`` is with curves."""
    confirmed = {result.study: result for result in confirmed_results(file) if result.budget_factor == 1}
    found = []
    for study in file.studies:
        result = confirmed.get(study.record.study)
        best = next(iter(study.ranked()), None)
        if result is not None and not math.isnan(result.mean):
            chosen = _configuration(study, result.trial, result.params, tuned=result.tuned, confirmed=result.mean)
            better = unconfirmed_better(study)
            found.append(chosen if better is None else replace(chosen, better_trial=better.trial.number))
        elif best is not None:
            found.append(_configuration(study, best.trial.number, best.params, tuned=best.trial.value, confirmed=None))
    return found


def winners(file: FileResults) -> list[ChosenConfiguration]:
    """One per problem with a usable trial: that of the optimizer ranked first by the verdict; ``file`` with curves."""
    first = {row.study for verdict in verdicts(file) for row in verdict.rows if row.rank == 1}
    return [configuration for configuration in chosen_configurations(file) if configuration.study in first]


def _configuration(
    study: StudyResults, trial: int, params: Mapping[str, Any], *, tuned: float | None, confirmed: float | None
) -> ChosenConfiguration:
    record = study.record
    problem = record.identity.get("problem") or {}
    return ChosenConfiguration(
        study=record.study,
        problem=record.problem,
        optimizer=record.optimizer,
        optimizer_name=record.identity.get("optimizer") or record.optimizer,
        problem_name=problem.get("name", record.problem),
        problem_args=dict(problem.get("args", {})),
        trial=trial,
        objective=study.objective,
        tuned=tuned,
        confirmed=confirmed,
        params=dict(params),
    )
