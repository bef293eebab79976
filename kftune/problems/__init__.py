"""Problems: data, model, likelihood and metrics. Adding one is one file here with its ``ENTRIES``."""

from kftune._registry import Registry
from kftune.problems._base import Problem, ProblemEntry, ProblemLoader, Split
from kftune.problems._data import DATASETS, Dataset, DatasetStatus, default_data_dir, fetch, list_datasets

PROBLEMS: Registry[ProblemEntry] = Registry("problem", "kftune.problems", "kftune.problems")
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
    "list_datasets",
]
