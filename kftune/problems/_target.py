"""Anyone's problem as an entry: an entry itself, or a function that loads one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kftune._targets import load_target, target_name, user_error
from kftune.errors import UsageError
from kftune.problems._base import Problem, ProblemEntry, ProblemLoader
from kftune.problems.data.directory import default_data_dir

_GIVEN = ("device", "dtype", "data_dir")
_KINDS = "a kftune.problems.ProblemEntry, or a function load(*, device, dtype, data_dir, …) that returns a Problem"


def problem_from(target: str, found: object) -> ProblemEntry:
    """The entry that an object of anyone's stands for.

    A function says nothing of its examples before it has run, so it is called once per process and data directory, with
    its own arguments at their defaults, on the CPU, with :func:`~kftune.problems.default_data_dir`. An entry is taken
    as it is.

    Args:
        target: where ``found`` is, for messages.
        found: an entry or a function.

    Raises:
        UsageError: it is neither; or what the function raised of this kind.
        UserCodeError: the function raised something else.
    """
    if isinstance(found, ProblemEntry):
        return found
    load = _function(target, found)
    args = _own_arguments(target, load)
    loaded = _loaded(target, load, default_data_dir())
    return ProblemEntry(
        name=target_name(target),
        load=load,
        summary=(inspect.getdoc(found) or "").partition("\n")[0],
        source="",
        n_train=loaded[0],
        n_test=loaded[1],
        args=args,
        has_accuracy=loaded[2],
    )


def target_loader(target: str) -> ProblemLoader:
    """What loads the problem of a target. Unlike :func:`problem_from`, this loads nothing yet.

    Raises:
        UsageError: there is no such object, or it is no problem.
        UserCodeError: its module cannot be imported.
    """
    found = load_target(target)
    return found.load if isinstance(found, ProblemEntry) else _function(target, found)


def _function(target: str, found: object) -> ProblemLoader:
    if not inspect.isroutine(found):
        raise UsageError(f"{target!r} is no problem; it must be {_KINDS}")
    return found


def is_problem(found: object) -> bool:
    """Whether an object is a problem's entry, or a function that takes what a problem's loader does."""
    if isinstance(found, ProblemEntry):
        return True
    return inspect.isroutine(found) and set(_GIVEN) <= set(inspect.signature(found).parameters)


def _own_arguments(target: str, function: ProblemLoader) -> Mapping[str, Any]:
    """Name → default of what a study file may give in ``args``."""
    arguments = inspect.signature(function).parameters
    missing = [name for name in _GIVEN if name not in arguments]
    if missing and not any(a.kind is a.VAR_KEYWORD for a in arguments.values()):
        raise UsageError(f"{target!r} does not take {' and '.join(missing)}; it must be {_KINDS}")
    own = {name: a for name, a in arguments.items() if name not in _GIVEN and a.kind not in (a.VAR_KEYWORD,)}
    for name, argument in own.items():
        if argument.default is argument.empty:
            raise UsageError(f"{target!r}: its argument {name!r} needs a default")
    return {name: argument.default for name, argument in own.items()}


@functools.lru_cache(maxsize=16)
def _loaded(target: str, function: ProblemLoader, data_dir: Path) -> tuple[int, int, bool]:
    """Numbers of training and test examples, and whether there is an accuracy."""
    try:
        problem = function(device=torch.device("cpu"), dtype=torch.float32, data_dir=data_dir)
    except UsageError:
        raise
    except Exception as error:
        raise user_error(f"the problem {target!r} cannot be loaded", error) from error
    if not isinstance(problem, Problem):
        raise UsageError(f"{target!r} returned {type(problem).__name__}, not a kftune.problems.Problem")
    return len(problem.train), len(problem.test), problem.accuracy is not None
