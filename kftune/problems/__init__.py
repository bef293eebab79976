"""Problems: data, model, likelihood and metrics. Adding one is one file here with its ``ENTRIES``."""

from kftune._registry import Registry
from kftune.problems._base import Problem, ProblemEntry, ProblemLoader, Split
from kftune.problems._data import DATASETS, Dataset, DatasetStatus, default_data_dir, fetch, list_datasets
from kftune.problems._target import is_problem, problem_from

PROBLEMS: Registry[ProblemEntry] = Registry("problem", "kftune.problems", "kftune.problems", from_target=problem_from)
"""Every problem, by its name in a study file."""

__all__ = [
    "DATASETS",
    "PROBLEMS",
    "Dataset",
    "DatasetStatus",
    "Problem",
    "ProblemEntry",
    "ProblemLoader",
    "Split",
    "default_data_dir",
    "fetch",
    "is_problem",
    "list_datasets",
]
