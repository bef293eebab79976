"""How well an optimizer's best configurations on one problem do on another.

Only configurations that were really tried on the other problem count, as ``warm_start`` makes the search do: a
neighbour's loss says little where the loss is steep. What was not tried is said to be not evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from kftune.analysis.stored.results import FileResults, StudyResults, TrialResults

__all__ = ["Transfer", "transfers"]

_REL_TOL = 1e-9  # of values that went through a database or a study file as text


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One configuration, best on one problem, and what it does on another.

    Attributes:
        optimizer: label.
        source: problem on which it is among the best.
        source_study: full name of that study.
        source_trial: its trial there.
        rank: among the source's trials, from 1.
        target: the other problem.
        target_study: full name of that study.
        target_trial: the trial there with the same configuration; None: not evaluated.
        loss: its value there; None: not evaluated, or its run crashed.
        own_best: value of the target's own best trial; None while it has none.
        untrained: the target's untrained model; None if unknown.
        regret: ``(loss − own_best) / (untrained − own_best)``: 0 as good as the target's own best, 1 no better than not
            training; None where one of the three is unknown.
        rank_there: rank of the configuration among the target's trials with a value, from 1.
        n_there: how many these are.
    """

    optimizer: str
    source: str
    source_study: str
    source_trial: int
    rank: int
    target: str
    target_study: str
    target_trial: int | None
    loss: float | None
    own_best: float | None
    untrained: float | None
    regret: float | None
    rank_there: int | None
    n_there: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def transfers(files: Sequence[FileResults], *, top: int = 1) -> list[Transfer]:
    """Every ordered pair of problems that an optimizer was tuned on, in these files.

    Studies are of one optimizer if its label is the same, of another problem if the label or the file differs and the
    stored problem is not the same one.

    Args:
        files: curves are needed for ``regret`` only.
        top: how many of the source's best configurations.
    """
    studies = [study for file in files for study in file.studies]
    return [
        _transfer(source, trial, rank, target)
        for source in studies
        for target in studies
        if source.record.optimizer == target.record.optimizer and _other_problem(source, target)
        for rank, trial in enumerate(source.ranked()[:top], start=1)
    ]


def _other_problem(source: StudyResults, target: StudyResults) -> bool:
    a, b = source.record, target.record
    if a.identity.get("problem") is not None and a.identity.get("problem") == b.identity.get("problem"):
        return False
    return a.problem != b.problem


def _transfer(source: StudyResults, trial: TrialResults, rank: int, target: StudyResults) -> Transfer:
    same = next((other for other in target.finished if _is_same(trial.params, other.params)), None)
    ranked = target.ranked()
    own_best = ranked[0].trial.value if ranked else None
    untrained = fmean(target.untrained.values()) if target.untrained else None
    loss = same.trial.value if same is not None and not same.is_pruned else None
    values = [other.trial.value for other in target.finished if other.trial.value is not None and not other.is_pruned]
    return Transfer(
        optimizer=source.record.optimizer,
        source=source.record.problem,
        source_study=source.record.study,
        source_trial=trial.trial.number,
        rank=rank,
        target=target.record.problem,
        target_study=target.record.study,
        target_trial=None if same is None else same.trial.number,
        loss=loss,
        own_best=own_best,
        untrained=untrained,
        regret=_regret(loss, own_best, untrained),
        rank_there=None if loss is None else 1 + sum(value < loss for value in values),
        n_there=len(values),
    )


def _is_same(params: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return params.keys() == other.keys() and all(_equal(value, other[name]) for name, value in params.items())


def _equal(a: Any, b: Any) -> bool:
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b)]
    return math.isclose(a, b, rel_tol=_REL_TOL) if all(numbers) else bool(type(a) is type(b) and a == b)


def _regret(loss: float | None, own_best: float | None, untrained: float | None) -> float | None:
    if loss is None or own_best is None or untrained is None or untrained <= own_best:
        return None
    return (loss - own_best) / (untrained - own_best)
