"""What a worker and its runner say to each other; :class:`~kftune.results.RunSpec` is the only message not here."""

from __future__ import annotations

from dataclasses import dataclass

from kftune.results import CurvePoint, RunResult


@dataclass(frozen=True)
class Ready:
    """The worker has imported what it needs."""


@dataclass(frozen=True)
class Point:
    """A new point on the curve of the run in progress."""

    point: CurvePoint


@dataclass(frozen=True)
class Question:
    """The run in progress waits to be told whether it may go on after the point it has just sent."""


@dataclass(frozen=True)
class Done:
    """The run has ended.

    Attributes:
        result: what became of it.
        changed: what it has left changed in the process, in words; a worker of which there is something is to be ended.
    """

    result: RunResult
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """To the worker: the answer to its :class:`Question`."""

    goes_on: bool
