"""The search-space gate: a ranking is provisional while an optimizer's best trials hug an edge of its box.

A best tenth that crowds at an edge says that better values may lie beyond it: the optimizer was not tuned, its box
was too small, and its place in a ranking says more about the box than about the method.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy import stats

from kftune.analysis.stored.results import StudyResults, TrialResults, sampler_of
from kftune.analysis.tuning.box import Edges, coordinates, searched_edges
from kftune.space import Float

__all__ = ["HuggedEdge", "best_share", "hugged_edges"]

_NEAR = 0.05
_AT_LEAST = 3
_BY_CHANCE = 0.01
_BELOW_ONE = ("momentum", "beta1", "beta2", "beta3", "factor_decay", "shampoo_beta", "rho")
_BATCH_SIZES = ("batch_size", "effective_batch_size", "full_batch_at")


@dataclass(frozen=True, kw_only=True)
class HuggedEdge:
    """One edge of a study's box that its best trials hug.

    Attributes:
        study: full name.
        problem: label.
        optimizer: label.
        dimension: name of the hyperparameter, as in the study file's ``space``.
        sampled_name: what the sampler varied, e.g. ``"damping/lr"``.
        edge: which end of ``box``.
        share: of the best trials, how many lie within 5 % of that edge (of the box's width on the searched scale).
        n_best: number of best trials looked at.
        box: ``(low, high)`` as in the study file (of the ratio if the dimension is ``relative_to`` another).
        wider: the box to try next; None if it cannot be wider: the edge is a limit of the hyperparameter itself.
        note: a limit that the wider box has to keep to and that is not known here; empty if there is none.
    """

    study: str
    problem: str
    optimizer: str
    dimension: str
    sampled_name: str
    edge: Literal["low", "high"]
    share: float
    n_best: int
    box: tuple[float, float]
    wider: tuple[float, float] | None
    note: str = ""

    @property
    def is_provisional(self) -> bool:
        """Whether the box can be widened there, so that the study's best is not its last word."""
        return self.wider is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"is_provisional": self.is_provisional}


def best_share(study: StudyResults) -> list[TrialResults]:
    """The best tenth of a study's trials, at least 3; none if fewer than 3 can be best."""
    ranked = study.ranked()
    n = max(_AT_LEAST, math.ceil(len(study.finished) / 10))
    return ranked[:n] if len(ranked) >= _AT_LEAST else []


def hugged_edges(study: StudyResults) -> list[HuggedEdge]:
    """Edges of a study's box that more than half of its best tenth hug, by dimension in the order of the space.

    Near is within 5 % of the box's width on the searched scale. So that whole numbers with few values are judged
    alike, and the values of a grid, it must also be unlikely: under 1 % if the best trials lay anywhere in the box (for
    a grid: at any of its values) by the binomial tail. Dimensions
    that are categorical, fixed, or inactive in some of these trials are looked at only where they are active, in 3
    trials or more.

    Args:
        study: one optimizer on one problem. No box of batch sizes is wider than its training set; where that is not
            known, a wider box carries a note.
    """
    best = best_share(study)
    sampled = [trial.trial.params for trial in best]
    is_grid = sampler_of(study.record) == "grid"
    found = []
    for edges in searched_edges(study.record).values():
        places = coordinates(edges, sampled)
        if len(places) < _AT_LEAST:
            continue
        for at_top in (False, True):
            near = [place for place in places if _is_near(place, at_top)]
            share_near = _grid_share(study, edges, at_top) if is_grid else _share_near(edges, at_top)
            if 2 * len(near) > len(places) and _is_unlikely(len(near), len(places), share_near):
                share = len(near) / len(places)
                found.append(_hugged(study, edges, at_top, share=share, n_best=len(places)))
    return found


def _is_near(place: float, at_top: bool) -> bool:
    return (1 - place if at_top else place) <= _NEAR


def _is_unlikely(n_near: int, n: int, share_near: float) -> bool:
    return float(stats.binom.sf(n_near - 1, n, share_near)) < _BY_CHANCE


def _grid_share(study: StudyResults, edges: Edges, at_top: bool) -> float:
    """How many of the values of a grid that were tried are near an edge."""
    tried = [trial.trial.params for trial in study.finished if not trial.trial.is_enqueued]
    places = {round(place, 9) for place in coordinates(edges, tried)}
    return sum(_is_near(place, at_top) for place in places) / len(places) if places else _share_near(edges, at_top)


def _share_near(edges: Edges, at_top: bool) -> float:
    """How much of the box is near an edge; a whole number has a cell of one half to each side, as samplers draw it."""
    if not edges.is_integer:
        return _NEAR
    border = edges.value(1 - _NEAR if at_top else _NEAR)
    whole = Edges(**{**edges.__dict__, "low": edges.low - 0.5, "high": edges.high + 0.5})
    reached = whole.coordinate(math.ceil(border) - 0.5 if at_top else math.floor(border) + 0.5)
    return 1 - reached if at_top else reached


def _hugged(study: StudyResults, edges: Edges, at_top: bool, *, share: float, n_best: int) -> HuggedEdge:
    dimension, n_train = edges.dimension, study.record.n_train
    is_complement = isinstance(dimension, Float) and dimension.complement
    edge: Literal["low", "high"] = "high" if at_top != is_complement else "low"
    low, high = float(dimension.low), float(dimension.high)
    wider = _wider_complement(edges, at_top) if is_complement else _wider(edges, at_top)
    is_larger_batch = edges.name in _BATCH_SIZES and at_top
    if is_larger_batch and wider is not None and n_train is not None:
        wider = (wider[0], min(wider[1], float(n_train))) if high < n_train else None
    return HuggedEdge(
        study=study.record.study,
        problem=study.record.problem,
        optimizer=study.record.optimizer,
        dimension=edges.name,
        sampled_name=edges.sampled_name,
        edge=edge,
        share=share,
        n_best=n_best,
        box=(low, high),
        wider=wider,
        note="at most the number of training examples" if is_larger_batch and wider and n_train is None else "",
    )


def _wider(edges: Edges, at_top: bool) -> tuple[float, float] | None:
    """One decade more on a log scale, half the width on a linear one, within what the hyperparameter allows."""
    low, high = edges.low, edges.high
    is_whole = edges.is_integer or edges.name in _BATCH_SIZES
    if at_top:
        new = 10 * high if edges.log else high + (high - low) / 2
        if edges.name in _BELOW_ONE:
            new = min(new, 1 - (1 - high) / 10)
        new = float(math.ceil(new)) if is_whole else _rounded(new)
        return (low, new) if new > high else None
    new = low / 10 if edges.log else low - (high - low) / 2
    if is_whole:
        new = float(max(1, math.floor(new)))
    elif low > 0:
        new = new if new > 0 else low / 10  # what is positive in its box may have to be: a learning rate of 0 is none
    elif low == 0:
        new = 0.0  # what is not negative in its box has no negative values
    new = new if is_whole else _rounded(new)
    return (new, high) if new < low else None


def _wider_complement(edges: Edges, at_top: bool) -> tuple[float, float] | None:
    """The box of the value itself, from one decade more in 1 - value, which stays between 0 and 1."""
    low, high = edges.low, edges.high
    if at_top:
        high = min(1.0, 10 * high if edges.log else high + (high - low) / 2)
    else:
        low = low / 10 if edges.log else max(0.0, low - (high - low) / 2)
    if (low, high) == (edges.low, edges.high) or low <= 0:
        return None
    return (round(1 - high, 12), round(1 - low, 12))


def _rounded(value: float) -> float:
    """Without the last bits that dividing by ten leaves."""
    return float(f"{value:.12g}")
