"""Wider boxes, where the search-space gate says that a study's best trials hug an edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kftune.cli.rendering.verdict_tables import edge_advice
from kftune.errors import UsageError
from kftune.progress.output import say

if TYPE_CHECKING:
    from kftune.study.config import StudyConfig

__all__ = ["widened_by_hand", "widened_study"]

_BATCH_SIZES = ("batch_size", "effective_batch_size")


def widened_study(config: StudyConfig) -> StudyConfig:
    """The study file with wider boxes; its studies are stored, and begin with the trials there are.

    Raises:
        UsageError: no box is too small, or nothing is stored.
    """
    from kftune.analysis.stored.results import load_results
    from kftune.analysis.tuning.gate import hugged_edges
    from kftune.storage.repository import Repository
    from kftune.study.config import make_plans
    from kftune.study.sessions.widening import take_over, widened

    with Repository.open(config.storage, create=False) as repository:
        (file,) = load_results(repository, [config.name])
        most = min(plan.n_train for plan in make_plans(config))
        boxes: dict[tuple[str, str], tuple[float, float]] = {}
        for edge in (edge for s in file.studies for edge in hugged_edges(s)):
            if edge.wider is None:
                continue
            low, high = edge.wider
            if edge.dimension in _BATCH_SIZES:  # one box for all problems, the smallest among them
                high = min(high, most)
                if high < edge.box[1] or (low, high) == edge.box:
                    continue
            say(f"{edge.study}: {edge_advice(edge)}")
            key = (edge.optimizer, edge.dimension)
            known = boxes.get(key, (low, high))
            boxes[key] = (min(low, known[0]), max(high, known[1]))
        if not boxes:
            raise UsageError(f"{config.name}: the best trials hug no edge of a box that could be wider")
        new = widened(config, boxes)
        take_over(config, new, repository=repository, say=say)
    return new


def widened_by_hand(config: StudyConfig, name: str) -> StudyConfig:
    """The study file, with a wider box of one's own, under a name that begins with the trials stored under its own.

    Raises:
        UsageError: the name is none, nothing is stored, or the box is not wider.
    """
    from kftune.storage.repository import Repository
    from kftune.study.config import check_name
    from kftune.study.sessions.widening import begin_wider

    try:
        check_name(name)
    except ValueError as error:
        raise UsageError(f"--widen: {error}") from None
    with Repository.open(config.storage, create=False) as repository:
        return begin_wider(config, name, repository=repository, say=say)
