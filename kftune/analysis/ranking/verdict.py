"""The answer at a glance: per problem, the optimizers by confirmed loss, and how sure that is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.analysis.trust.confirmed import ConfirmedResult, confirmed_results, unconfirmed_better
from kftune.analysis.trust.health import health
from kftune.analysis.trust.intervals import Interval
from kftune.analysis.trust.paired import PairComparison, compare_pairs
from kftune.analysis.trust.superiority import SuperiorityMatrix, superiority_matrices
from kftune.analysis.tuning.best import best_of_study
from kftune.analysis.tuning.gate import HuggedEdge, hugged_edges

__all__ = ["ProblemVerdict", "VerdictRow", "verdicts"]


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """One optimizer on one problem.

    Attributes:
        rank: from 1; None where it cannot be ranked: unconfirmed beside confirmed ones, unconfirmed at another multiple
            of the budget than 1, or without a result.
        study: full name.
        optimizer: label.
        trial: the configuration; None without a result.
        is_confirmed: whether ``loss`` is of fresh seeds.
        loss: confirmed loss, else the tuned one, which is flattered; NaN without a result.
        interval: 95 % interval of a confirmed loss over seeds; None for a tuned one.
        tuned: loss of that configuration in the search.
        n_seeds: runs behind ``loss``.
        n_uncounted: fresh seeds on which the configuration crashed: they say nothing, and are not behind ``loss``.
        updates: per run, mean.
        train_seconds: per run, mean.
        outcomes: outcome → number of the search's runs.
        confirm_outcomes: outcome → number of the confirming runs, of all configurations at this budget factor.
        n_finished: settled trials.
        n_trials: how many there are to be.
        n_flagged: runs that count although the machine was off by more than the tolerance.
        edges: of the search box that the best trials hug.
        better_trial: the search's best, where it is none of the confirmed ones but came after them; else None.
        params: resolved hyperparameters of the configuration.
    """

    rank: int | None
    study: str
    optimizer: str
    trial: int | None
    is_confirmed: bool
    loss: float
    interval: Interval | None
    tuned: float | None
    n_seeds: int
    n_uncounted: int
    updates: float
    train_seconds: float
    outcomes: Mapping[str, int]
    confirm_outcomes: Mapping[str, int]
    n_finished: int
    n_trials: int
    n_flagged: int
    edges: tuple[HuggedEdge, ...]
    better_trial: int | None
    params: Mapping[str, Any]

    @property
    def is_provisional(self) -> bool:
        """Whether a wider search box, more trials, or confirming what is better by now, may change the row."""
        is_open = self.n_finished < self.n_trials or self.better_trial is not None
        return is_open or any(edge.is_provisional for edge in self.edges)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {
            "edges": [edge.to_dict() for edge in self.edges],
            "is_provisional": self.is_provisional,
        }


@dataclass(frozen=True, kw_only=True)
class ProblemVerdict:
    """All optimizers on one problem.

    Attributes:
        file_name: the study file's ``name``.
        problem: label.
        objective: what the losses are.
        budget_factor: of the confirming runs that rank.
        rows: the ranked ones, best first, then the others by tuned loss, then those without a result. At another budget
            factor than 1 nothing is ranked that is not confirmed there.
        comparisons: of every pair that is confirmed on two common seeds or more, in the order of the rows.
        matrix: P(A beats B), in the order of the rows; None with fewer than two confirmed optimizers.
    """

    file_name: str
    problem: str
    objective: str
    budget_factor: float
    rows: tuple[VerdictRow, ...]
    comparisons: tuple[PairComparison, ...]
    matrix: SuperiorityMatrix | None

    @property
    def is_confirmed(self) -> bool:
        """Whether anything is confirmed at this budget factor, and the ranking is by confirmed loss.

        Else it is by tuned loss, and no more than a hint; but there is none at another budget factor than 1.
        """
        return any(row.is_confirmed for row in self.rows)

    @property
    def is_provisional(self) -> bool:
        """Whether any row is."""
        return any(row.is_provisional for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "file_name": self.file_name,
            "problem": self.problem,
            "objective": self.objective,
            "budget_factor": self.budget_factor,
            "is_confirmed": self.is_confirmed,
            "is_provisional": self.is_provisional,
            "rows": [row.to_dict() for row in self.rows],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "superiority": None if self.matrix is None else self.matrix.to_dict(),
        }


def verdicts(file: FileResults, *, budget_factor: float = 1.0) -> list[ProblemVerdict]:
    """One verdict per problem of the file.

    Args:
        file: with curves.
        budget_factor: which confirming runs rank; with another one than 1, what is not confirmed there is not ranked.
    """
    confirmed = {r.study: r for r in confirmed_results(file) if r.budget_factor == budget_factor}
    flagged = {study.study: study.n_flagged for study in health(file).studies}
    pairs = compare_pairs(file, budget_factor=budget_factor)
    matrices = {matrix.problem: matrix for matrix in superiority_matrices(file, budget_factor=budget_factor)}
    found = []
    for problem in file.problems:
        studies = file.of_problem(problem)
        rows = _ranked(
            [
                _row(study, confirmed.get(study.record.study), flagged[study.record.study], budget_factor)
                for study in studies
            ],
            is_tuned_ranked=budget_factor == 1,
        )
        places = [row.optimizer for row in rows]
        of_problem = [pair for pair in pairs if pair.problem == problem]
        of_problem.sort(key=lambda pair: (places.index(pair.first), places.index(pair.second)))
        matrix = matrices.get(problem)
        found.append(
            ProblemVerdict(
                file_name=file.name,
                problem=problem,
                objective=file.objective,
                budget_factor=budget_factor,
                rows=rows,
                comparisons=tuple(of_problem),
                matrix=matrix.ordered(places) if matrix is not None and len(matrix.optimizers) > 1 else None,
            )
        )
    return found


def _ranked(rows: Sequence[VerdictRow], *, is_tuned_ranked: bool) -> tuple[VerdictRow, ...]:
    """Tuned and confirmed losses are not ranked against each other, nor tuned ones for another budget than theirs."""
    by_loss = sorted(rows, key=lambda row: (not row.is_confirmed, math.isnan(row.loss), row.loss))
    any_confirmed = any(row.is_confirmed for row in rows)
    is_ranked = any_confirmed or is_tuned_ranked
    n = sum(is_ranked and not math.isnan(row.loss) and row.is_confirmed == any_confirmed for row in rows)
    return tuple(replace(row, rank=i if i <= n else None) for i, row in enumerate(by_loss, start=1))


def _row(study: StudyResults, confirmed: ConfirmedResult | None, n_flagged: int, budget_factor: float) -> VerdictRow:
    best = best_of_study(study, top=1)
    confirming = [run for run in study.confirmations if run.budget_factor == budget_factor]
    row = VerdictRow(
        rank=None,
        study=study.record.study,
        optimizer=study.record.optimizer,
        trial=None,
        is_confirmed=False,
        loss=math.nan,
        interval=None,
        tuned=None,
        n_seeds=0,
        n_uncounted=0,
        updates=0.0,
        train_seconds=0.0,
        outcomes=dict(Counter(run.result.outcome.value for run in study.runs)),
        confirm_outcomes=dict(Counter(run.result.outcome.value for run in confirming)),
        n_finished=len(study.finished),
        n_trials=study.record.n_trials,
        n_flagged=n_flagged,
        edges=tuple(hugged_edges(study)),
        better_trial=None,
        params={},
    )
    if confirmed is not None and not math.isnan(confirmed.mean):
        better = unconfirmed_better(study, budget_factor=budget_factor)
        return replace(
            row,
            trial=confirmed.trial,
            is_confirmed=True,
            loss=confirmed.mean,
            interval=confirmed.interval,
            tuned=confirmed.tuned,
            n_seeds=len(confirmed.by_repeat()),
            n_uncounted=sum(confirmed.outcomes.values()) - len(confirmed.by_repeat()),
            updates=confirmed.updates,
            train_seconds=confirmed.train_seconds,
            better_trial=None if better is None else better.trial.number,
            params=confirmed.params,
        )
    if not best.configurations:
        return row
    first = best.configurations[0]
    return replace(
        row,
        trial=first.trial,
        loss=first.value,
        tuned=first.value,
        n_seeds=sum(first.outcomes.values()),
        updates=first.updates,
        train_seconds=first.train_seconds,
        params=first.params,
    )
