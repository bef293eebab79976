"""How often one optimizer beats another on a seed that had no part in tuning either.

The probability of superiority P(A beats B) is the chance that, on one fresh seed, A's loss is below B's; ties count
half. It says how much a difference matters beside the noise of training, which a p-value does not (Bouthillier et al.
2021, Accounting for Variance in Machine Learning Benchmarks, Section 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from typing import Any

from scipy import stats

from kftune.analysis.stored.results import FileResults
from kftune.analysis.trust.confirmed import ConfirmedResult, confirmed_results
from kftune.analysis.trust.intervals import Interval

__all__ = ["Superiority", "SuperiorityMatrix", "probability_of_superiority", "superiority_matrices"]


@dataclass(frozen=True, kw_only=True)
class Superiority:
    """P(A beats B) on common seeds.

    Attributes:
        probability: share of the seeds on which A's loss is lower, ties half.
        interval: 95 % score interval (Wilson 1927); it is wide, because seeds are few.
        n_seeds: common to both.
    """

    probability: float
    interval: Interval
    n_seeds: int


@dataclass(frozen=True, kw_only=True)
class SuperiorityMatrix:
    """All pairs of a problem's optimizers.

    Attributes:
        problem: label.
        budget_factor: of the confirming runs.
        optimizers: labels of rows and columns.
        cells: ``cells[i][j]`` is P(i beats j); None on the diagonal and without a common seed.
    """

    problem: str
    budget_factor: float
    optimizers: tuple[str, ...]
    cells: tuple[tuple[Superiority | None, ...], ...]

    def ordered(self, optimizers: Sequence[str]) -> SuperiorityMatrix:
        """The same with rows and columns in the order in which their labels stand among ``optimizers``."""
        places = sorted(range(len(self.optimizers)), key=lambda i: optimizers.index(self.optimizers[i]))
        return replace(
            self,
            optimizers=tuple(self.optimizers[i] for i in places),
            cells=tuple(tuple(self.cells[i][j] for j in places) for i in places),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def probability_of_superiority(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95
) -> Superiority | None:
    """P(first beats second) from losses on the same seeds, in the same order; None if there are none.

    Raises:
        ValueError: they are not equally many.
    """
    n = len(first)
    if n == 0:
        return None
    wins = sum(1.0 if a < b else 0.5 if a == b else 0.0 for a, b in zip(first, second, strict=True))
    return Superiority(probability=wins / n, interval=_wilson(wins / n, n, level), n_seeds=n)


def superiority_matrices(file: FileResults, *, budget_factor: float = 1.0) -> list[SuperiorityMatrix]:
    """One matrix per problem of which an optimizer is confirmed at this budget factor, in the file's order."""
    found = [result for result in confirmed_results(file) if result.budget_factor == budget_factor]
    return [
        _matrix([result for result in found if result.problem == problem])
        for problem in dict.fromkeys(result.problem for result in found)
    ]


def _matrix(results: Sequence[ConfirmedResult]) -> SuperiorityMatrix:
    n = len(results)
    cells: list[list[Superiority | None]] = [[None] * n for _ in range(n)]
    for i, j in permutations(range(n), 2):
        mine, theirs = results[i].by_repeat(), results[j].by_repeat()
        common = sorted(mine.keys() & theirs.keys())
        cells[i][j] = probability_of_superiority([mine[r] for r in common], [theirs[r] for r in common])
    return SuperiorityMatrix(
        problem=results[0].problem,
        budget_factor=results[0].budget_factor,
        optimizers=tuple(result.optimizer for result in results),
        cells=tuple(map(tuple, cells)),
    )


def _wilson(share: float, n: int, level: float) -> Interval:
    """Score interval of a share; written out because ties make half wins, which scipy's does not take."""
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (max(0.0, centre - half), min(1.0, centre + half))
