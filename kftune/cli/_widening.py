"""Wider boxes, where the search-space gate says that a study's best trials hug an edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kftune.cli._output import say
from kftune.cli._verdict_tables import edge_advice
from kftune.errors import UsageError

if TYPE_CHECKING:
    from kftune.study.config import StudyConfig

__all__ = ["widened_study"]

_BATCH_SIZES = ("batch_size", "effective_batch_size")


def widened_study(config: StudyConfig) -> StudyConfig:
    """The study file with wider boxes; its studies are stored, and begin with the trials there are.

    Raises:
        UsageError: no box is too small, or nothing is stored.
    """
    from kftune.analysis.gate import hugged_edges
    from kftune.analysis.results import load_results
    from kftune.problems import PROBLEMS
    from kftune.storage.repository import Repository
    from kftune.study.widening import take_over, widened

    with Repository.open(config.storage, create=False) as repository:
        (file,) = load_results(repository, [config.name])
        n_train = {plan.study: PROBLEMS.get(plan.problem_name).n_train for plan in config.plans()}
        found = [edge for s in file.studies for edge in hugged_edges(s, n_train=n_train.get(s.record.study))]
        edges = [edge for edge in found if edge.wider is not None]
        if not edges:
            raise UsageError(f"{config.name}: the best trials hug no edge of a box that could be wider")
        most = min(n_train.values())
        boxes: dict[tuple[str, str], tuple[float, float]] = {}
        for edge in edges:
            say(f"{edge.study}: {edge_advice(edge)}")
            assert edge.wider is not None  # filtered above
            low, high = edge.wider
            high = min(high, most) if edge.dimension in _BATCH_SIZES else high
            key = (edge.optimizer, edge.dimension)
            known = boxes.get(key, (low, high))
            boxes[key] = (min(low, known[0]), max(high, known[1]))
        new = widened(config, boxes)
        take_over(config, new, repository=repository, say=say)
    return new
