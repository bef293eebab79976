"""Problems: data, model, likelihood and metrics. Adding one is one file here with its ``ENTRIES``."""

from kftune._registry import Registry
from kftune._targets import is_target
from kftune.problems._base import Problem, ProblemEntry, ProblemLoader, Split
from kftune.problems._target import is_problem, problem_from, target_loader
from kftune.problems.data.datasets import DATASETS, Dataset, get_dataset
from kftune.problems.data.directory import DatasetStatus, data_read_from, default_data_dir, list_datasets, locate
from kftune.problems.data.fetching import fetch

PROBLEMS: Registry[ProblemEntry] = Registry("problem", "kftune.problems", "kftune.problems", from_target=problem_from)
"""Every problem, by its name in a study file."""


def problem_loader(name: str) -> ProblemLoader:
    """What loads the problem of this name, or of this target; nothing is loaded yet.

    Raises:
        UsageError: there is none.
        UserCodeError: the target's module cannot be imported.
    """
    return target_loader(name) if is_target(name) else PROBLEMS.get(name).load


__all__ = [
    "DATASETS",
    "PROBLEMS",
    "Dataset",
    "DatasetStatus",
    "Problem",
    "ProblemEntry",
    "ProblemLoader",
    "Split",
    "data_read_from",
    "default_data_dir",
    "fetch",
    "get_dataset",
    "is_problem",
    "list_datasets",
    "locate",
    "problem_loader",
]
