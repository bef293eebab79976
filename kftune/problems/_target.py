"""Anyone's problem as an entry: an entry itself, or a function that loads one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    """The entry that an object of anyone's stands for, with its own arguments at their defaults; see :func:`counted`.

    Args:
        target: where ``found`` is, for messages.
        found: an entry or a function.

    Raises:
        UsageError: it is neither; or what the function raised of this kind.
        UserCodeError: the function raised something else.
    """
    return counted(uncounted(target, found), {})


@dataclass(frozen=True)
class OwnProblem:
    """A function that loads a problem. It says nothing of its examples before it has run: see :func:`counted`.

    Attributes:
        target: where it is.
        load: the function.
        args: its own arguments → their defaults.
    """

    target: str
    load: ProblemLoader
    args: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The function's, in lower case."""
        return target_name(self.target)


def uncounted(target: str, found: object) -> ProblemEntry | OwnProblem:
    """What an object of anyone's stands for; nothing is loaded.

    Raises:
        UsageError: it is no problem.
    """
    if isinstance(found, ProblemEntry):
        return found
    load = _function(target, found)
    return OwnProblem(target, load, _own_arguments(target, load))


def counted(problem: ProblemEntry | OwnProblem, args: Mapping[str, Any]) -> ProblemEntry:
    """The entry whose numbers are those of the problem with ``args``.

    A function, and an entry with arguments that may change them, is loaded for it: once per process, data directory and
    arguments, on the CPU, with :func:`~kftune.problems.default_data_dir`.

    Args:
        problem: see :func:`uncounted`.
        args: of its own arguments those that are not at their defaults; names and types are checked.

    Raises:
        UsageError: the problem refuses an argument, or its data are missing.
        UserCodeError: its function raised something else.
    """
    if isinstance(problem, ProblemEntry):
        changing = set(args) if problem.sized_by is None else set(args) & set(problem.sized_by)
        return replace(problem, **_counts(problem.name, problem.load, args)) if changing else problem
    return ProblemEntry(
        name=problem.name,
        load=problem.load,
        summary=(inspect.getdoc(problem.load) or "").partition("\n")[0],
        source="",
        args=problem.args,
        **_counts(problem.target, problem.load, args),
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


_MOST_KEPT = 16
_kept: dict[tuple[str, ProblemLoader, Path, str], dict[str, Any]] = {}


def _counts(name: str, load: ProblemLoader, args: Mapping[str, Any]) -> dict[str, Any]:
    """``n_train``, ``n_test`` and ``has_accuracy`` of a problem with these arguments; the latest are remembered."""
    key = (name, load, default_data_dir(), repr(sorted(args.items())))
    if key not in _kept:
        problem = _loaded(name, load, args)
        while len(_kept) >= _MOST_KEPT:
            del _kept[next(iter(_kept))]
        _kept[key] = {
            "n_train": len(problem.train),
            "n_test": len(problem.test),
            "has_accuracy": problem.accuracy is not None,
        }
    return _kept[key]


def _loaded(name: str, load: ProblemLoader, args: Mapping[str, Any]) -> Problem:
    try:
        problem = load(device=torch.device("cpu"), dtype=torch.float32, data_dir=default_data_dir(), **args)
    except UsageError:
        raise
    except Exception as error:
        given = f" with {', '.join(f'{key}={value!r}' for key, value in args.items())}" if args else ""
        raise user_error(f"the problem {name!r} cannot be loaded{given}", error) from error
    if not isinstance(problem, Problem):
        raise UsageError(f"{name!r} returned {type(problem).__name__}, not a kftune.problems.Problem")
    return problem
