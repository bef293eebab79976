"""Problems: data, model, likelihood and metrics. Adding one is one file here with its ``ENTRIES``."""

from collections.abc import Mapping
from typing import Any

from kftune._registry import Registry
from kftune._targets import is_target, load_target
from kftune.problems._base import Problem, ProblemEntry, ProblemLoader, Split
from kftune.problems._target import OwnProblem, counted, is_problem, problem_from, target_loader, uncounted
from kftune.problems.data.datasets import DATASETS, Dataset, get_dataset
from kftune.problems.data.directory import DatasetStatus, data_read_from, default_data_dir, list_datasets, locate
from kftune.problems.data.fetching import fetch

PROBLEMS: Registry[ProblemEntry] = Registry("problem", "kftune.problems", "kftune.problems", from_target=problem_from)
"""Every problem, by its name in a study file."""


def find_problem(name: str) -> ProblemEntry | OwnProblem:
    """The problem of this name, or of this target, for :func:`counted`; nothing is loaded yet.

    Raises:
        UsageError: there is none.
        UserCodeError: the target's module cannot be imported.
    """
    return uncounted(name, load_target(name)) if is_target(name) else PROBLEMS.get(name)


def problem_with(name: str, args: Mapping[str, Any]) -> ProblemEntry:
    """The problem of this name, or of this target, with its own arguments; see :func:`counted`."""
    return counted(find_problem(name), args)


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
    "OwnProblem",
    "Problem",
    "ProblemEntry",
    "ProblemLoader",
    "Split",
    "counted",
    "data_read_from",
    "default_data_dir",
    "fetch",
    "find_problem",
    "get_dataset",
    "is_problem",
    "list_datasets",
    "locate",
    "problem_loader",
    "problem_with",
]
