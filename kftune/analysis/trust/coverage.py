"""What optimizers did to how many of the parameters: how much of a network had the method's own rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from kftune.analysis.stored.results import FileResults, StudyResults

__all__ = ["StudyCoverage", "study_coverages"]


@dataclass(frozen=True, kw_only=True)
class StudyCoverage:
    """One study's runs.

    Attributes:
        study: full name.
        problem: label.
        optimizer: label.
        n_parameters: scalars of the model; None if no run has stored what was done to them.
        shares: treatment → share of the scalars, the mean over the runs that have stored it, largest first.
        differs: whether it was not the same in all of them (a hyperparameter may decide it).
    """

    study: str
    problem: str
    optimizer: str
    n_parameters: int | None
    shares: Mapping[str, float]
    differs: bool


def study_coverages(file: FileResults) -> list[StudyCoverage]:
    """Of every study of a file, in its order."""
    return [_of(study) for study in file.studies]


def _of(study: StudyResults) -> StudyCoverage:
    told = [run.result.treatments for run in (*study.runs, *study.confirmations) if run.result.treatments]
    sums: Counter[str] = Counter()
    for treatments in told:
        sums.update(treatments)
    total = sums.total()
    return StudyCoverage(
        study=study.record.study,
        problem=study.record.problem,
        optimizer=study.record.optimizer,
        n_parameters=sum(told[-1].values()) if told else None,
        shares={treatment: n / total for treatment, n in sums.most_common()},
        differs=any(treatments != told[0] for treatments in told),
    )
