"""The best configurations of every study, as in the thesis' Tables 1 to 3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from kftune.analysis.stored.results import FileResults, StudyResults, TrialResults, objective_of
from kftune.analysis.tuning.gate import HuggedEdge, hugged_edges

__all__ = ["BestConfiguration", "StudyBest", "best_configurations", "best_of_study"]


@dataclass(frozen=True, kw_only=True)
class BestConfiguration:
    """One of a study's best trials.

    Attributes:
        rank: from 1.
        trial: its number.
        value: mean objective of its runs; what the sampler saw.
        run_values: the runs' objectives, by repeat.
        params: resolved hyperparameters.
        sampled: the sampler's values by sampled name.
        updates: parameter updates per run, mean.
        train_seconds: per run, mean.
        outcomes: outcome → number of runs.
        is_startup: drawn at random before the sampler's model took over.
    """

    rank: int
    trial: int
    value: float
    run_values: tuple[float, ...]
    params: Mapping[str, Any]
    sampled: Mapping[str, Any]
    updates: float
    train_seconds: float
    outcomes: Mapping[str, int]
    is_startup: bool

    @property
    def spread(self) -> float:
        """Largest minus smallest objective over the repeats; 0 with one."""
        return max(self.run_values) - min(self.run_values) if self.run_values else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"run_values": list(self.run_values), "spread": self.spread}


@dataclass(frozen=True, kw_only=True)
class StudyBest:
    """The best of one study; ``configurations`` is empty while no trial has ended well.

    Attributes:
        file_name: the study file's ``name``.
        study: full name.
        problem: label.
        optimizer: label.
        objective: what the values are, e.g. ``"test_loss"``.
        fixed: hyperparameters that are not searched, the same in every configuration.
        n_finished: trials that are settled.
        configurations: best first.
        edges: of the search box that the best trials hug; see :mod:`kftune.analysis.tuning.gate`.
    """

    file_name: str
    study: str
    problem: str
    optimizer: str
    objective: str
    fixed: Mapping[str, Any]
    n_finished: int
    configurations: tuple[BestConfiguration, ...]
    edges: tuple[HuggedEdge, ...] = ()

    @property
    def is_provisional(self) -> bool:
        """Whether better values may lie beyond an edge of the search box."""
        return any(edge.is_provisional for edge in self.edges)

    @property
    def searched(self) -> tuple[str, ...]:
        """Hyperparameters that differ between configurations, in the order of the first that has them."""
        names = dict.fromkeys(name for best in self.configurations for name in best.params)
        return tuple(name for name in names if name not in self.fixed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {
            "configurations": [best.to_dict() for best in self.configurations],
            "edges": [edge.to_dict() for edge in self.edges],
            "is_provisional": self.is_provisional,
        }


def best_configurations(files: Sequence[FileResults], *, top: int = 4) -> list[StudyBest]:
    """The ``top`` best configurations of every study, in the order of the files.

    The value of the best of many trials is biased: it was selected for being low on these very seeds.

    Args:
        files: from :func:`kftune.analysis.stored.results.load_results`, with curves.
        top: how many of each study; fewer if fewer ended well.
    """
    return [best_of_study(study, top=top) for file in files for study in file.studies]


def best_of_study(study: StudyResults, *, top: int = 4) -> StudyBest:
    """See :func:`best_configurations`."""
    record = study.record
    return StudyBest(
        file_name=record.file_name,
        study=record.study,
        problem=record.problem,
        optimizer=record.optimizer,
        objective=objective_of(record),
        fixed=dict(record.space.get("fixed", {})),
        n_finished=len(study.finished),
        configurations=tuple(_configuration(rank, trial) for rank, trial in enumerate(study.ranked()[:top], start=1)),
        edges=tuple(hugged_edges(study)),
    )


def _configuration(rank: int, trial: TrialResults) -> BestConfiguration:
    value = trial.trial.value
    assert value is not None  # ranked() holds no other
    return BestConfiguration(
        rank=rank,
        trial=trial.trial.number,
        value=value,
        run_values=tuple(run_value for run_value in trial.run_values if run_value is not None),
        params=dict(trial.params),
        sampled=dict(trial.trial.params),
        updates=fmean(run.result.updates for run in trial.runs),
        train_seconds=fmean(run.result.train_seconds for run in trial.runs),
        outcomes=dict(Counter(run.result.outcome.value for run in trial.runs)),
        is_startup=trial.is_startup,
    )
