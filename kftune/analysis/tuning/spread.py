"""Where each optimizer's best configurations lie on different problems, and how far apart.

An optimizer whose best hyperparameters stay where they are from problem to problem can be used with little tuning
(Ulbæk 2022, Section 8.2, claims it of K-FAC and denies it of SGD). Every hyperparameter is looked at as the sampler
varied it (``damping/lr``, ``1-momentum``), in coordinates that are 0 at the lower and 1 at the upper edge of the box;
where problems have different boxes, of the smallest box that holds them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.analysis.tuning.box import Edges, coordinates, searched_edges
from kftune.analysis.tuning.gate import best_share

__all__ = ["ANYWHERE", "BestRegion", "DimensionSpread", "OptimizerSpread", "optimizer_spreads"]

ANYWHERE = 1 / math.sqrt(12)
"""Spread of places that are uniform in the box: 0.289."""


@dataclass(frozen=True, kw_only=True)
class BestRegion:
    """Where the best tenth of a study's trials (at least 3) lies in one dimension.

    Attributes:
        file_name: of the study.
        problem: label.
        n: trials.
        low: lowest coordinate.
        median: the middle one.
        high: highest.
        value: the sampled value at the median.
    """

    file_name: str
    problem: str
    n: int
    low: float
    median: float
    high: float
    value: float


@dataclass(frozen=True, kw_only=True)
class DimensionSpread:
    """One hyperparameter of one optimizer across problems.

    Attributes:
        sampled_name: what was varied.
        box: ``(low, high)`` of it, of the smallest box that holds every problem's.
        log: whether the coordinates are logarithmic.
        regions: one per problem.
        spread: standard deviation (n − 1) of the medians' coordinates: 0 if the best is always in the same place,
            0.29 if it may be anywhere in the box. NaN with one problem.
    """

    sampled_name: str
    box: tuple[float, float]
    log: bool
    regions: tuple[BestRegion, ...]
    spread: float


@dataclass(frozen=True, kw_only=True)
class OptimizerSpread:
    """One optimizer across problems.

    Attributes:
        optimizer: label.
        dimensions: in the order of its search space.
        spread: root mean square of the dimensions' spreads; NaN if none is known.
    """

    optimizer: str
    dimensions: tuple[DimensionSpread, ...]
    spread: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def optimizer_spreads(files: Sequence[FileResults]) -> list[OptimizerSpread]:
    """Every optimizer of which a study has enough trials, over all problems of the files.

    Dimensions that are searched on a log scale on one problem and not on another are left out, and so are categorical
    ones.
    """
    studies = [study for file in files for study in file.studies]
    found = []
    for optimizer in dict.fromkeys(study.record.optimizer for study in studies):
        mine = [study for study in studies if study.record.optimizer == optimizer and best_share(study)]
        if mine:
            found.append(_optimizer_spread(optimizer, mine))
    return found


def _optimizer_spread(optimizer: str, studies: Sequence[StudyResults]) -> OptimizerSpread:
    boxes = [searched_edges(study.record) for study in studies]
    dimensions = []
    for name in dict.fromkeys(name for box in boxes for name in box):
        dimension = _dimension_spread(name, studies, boxes)
        if dimension is not None:
            dimensions.append(dimension)
    known = [dimension.spread for dimension in dimensions if not math.isnan(dimension.spread)]
    overall = math.sqrt(sum(spread**2 for spread in known) / len(known)) if known else math.nan
    return OptimizerSpread(optimizer=optimizer, dimensions=tuple(dimensions), spread=overall)


def _dimension_spread(
    name: str, studies: Sequence[StudyResults], boxes: Sequence[Mapping[str, Edges]]
) -> DimensionSpread | None:
    mine = [box[name] for box in boxes if name in box]
    if len({edges.log for edges in mine}) > 1:
        return None
    common = replace(mine[0], low=min(edges.low for edges in mine), high=max(edges.high for edges in mine))
    regions = [
        region
        for study, box in zip(studies, boxes, strict=True)
        if name in box and (region := _region(study, common)) is not None
    ]
    if not regions:
        return None
    medians = [region.median for region in regions]
    return DimensionSpread(
        sampled_name=name,
        box=(common.low, common.high),
        log=common.log,
        regions=tuple(regions),
        spread=float(np.std(medians, ddof=1)) if len(medians) > 1 else math.nan,
    )


def _region(study: StudyResults, edges: Edges) -> BestRegion | None:
    places = coordinates(edges, [trial.trial.params for trial in best_share(study)])
    if not places:
        return None
    median = float(np.median(places))
    return BestRegion(
        file_name=study.record.file_name,
        problem=study.record.problem,
        n=len(places),
        low=min(places),
        median=median,
        high=max(places),
        value=edges.value(median),
    )
