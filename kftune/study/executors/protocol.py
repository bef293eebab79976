"""What a session of runs needs of an executor, and what an executor tells it.

A session submits runs to slots, and is told by events what becomes of them. It proposes and alone writes the database;
an executor knows neither trials nor studies. One run at a time is on a slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from kftune.results import CurvePoint, RunResult, RunSpec

__all__ = [
    "Asked",
    "Executor",
    "Finished",
    "Holder",
    "Lost",
    "Progressed",
    "RunEvent",
    "Started",
    "TimedOut",
    "Waiting",
]


@dataclass(frozen=True)
class Started:
    """A run has got its device and begins; it waited ``waited_seconds`` since its submission."""

    slot: int
    waited_seconds: float


@dataclass(frozen=True)
class Progressed:
    """A run's curve has a new point."""

    slot: int
    point: CurvePoint


@dataclass(frozen=True)
class Asked:
    """A run waits to be told whether it may go on after its newest point; see :meth:`Executor.judge`."""

    slot: int


@dataclass(frozen=True)
class Finished:
    """A run ended and reported its result.

    Attributes:
        slot: where it was.
        result: what became of it.
        wall_seconds: from its start to here.
        changed: what its code left changed in the process that it ran in, in words; no later run runs in that.
    """

    slot: int
    result: RunResult
    wall_seconds: float
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lost:
    """A worker died with its run; ``reason`` says how."""

    slot: int
    reason: str
    wall_seconds: float


@dataclass(frozen=True)
class TimedOut:
    """A run passed a limit and its worker was killed; ``reason`` says which."""

    slot: int
    reason: str
    wall_seconds: float


RunEvent: TypeAlias = Started | Progressed | Asked | Finished | Lost | TimedOut


@dataclass(frozen=True)
class Holder:
    """Who has a device, or cores.

    Attributes:
        pid: of the runner's process.
        name: of its study file.
    """

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True)
class Waiting:
    """A run that waits for its device, and the other processes that use it."""

    slot: int
    device: str
    holders: tuple[Holder, ...]

    def __str__(self) -> str:
        what = "CPU cores" if self.device == "cpu" else self.device
        return f"waiting for {what}, used by {', '.join(map(str, self.holders)) or 'another process'}"


class Executor(Protocol):
    """Where runs happen: a number of slots, each with a device, each with at most one run.

    Used in a ``with`` block; at its end everything that was started is ended, busy or not.
    """

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End what was started."""

    def submit(
        self, slot: int, spec: RunSpec, *, limit_seconds: float | None, silence_seconds: float | None = None
    ) -> None:
        """Train ``spec`` on an idle slot, as soon as its device is free.

        The first event of the run is :class:`Started`, its last :class:`Finished`, :class:`Lost` or :class:`TimedOut`;
        the slot is idle from then on.

        Args:
            slot: the slot.
            spec: the run.
            limit_seconds: wall seconds after which it is killed; waiting for the device does not count.
            silence_seconds: seconds after the last that was heard of it (its start, a point) after which it is killed;
                waiting to be judged does not count.

        Raises:
            RuntimeError: the slot is busy.
        """

    def judge(self, slot: int, *, goes_on: bool) -> None:
        """Tell a run that has asked (:class:`Asked`) whether it may go on; nothing happens if it has ended since."""

    def idle_slots(self) -> list[int]:
        """Slots that can be given a run."""

    def waiting(self) -> list[Waiting]:
        """Runs that were submitted and wait for their devices."""

    def withdraw(self) -> list[int]:
        """Forget the runs that wait for their devices; returns their slots, which are idle again."""

    def notice(self) -> str | None:
        """What a person should know of how the slots share the machine; None if there is nothing."""

    def retire(self, slot: int) -> None:
        """Forget what an idle slot has kept from its runs (after a crash its state cannot be trusted)."""

    def find_micro_batch(self, slot: int, spec: RunSpec, *, wanted: int) -> int | None:
        """The largest micro-batch up to ``wanted`` with which ``spec`` fits in the memory of an idle slot's device.

        What happens on other slots meanwhile is reported by the next :meth:`poll`.

        Returns:
            See :func:`~kftune.training.loop.micro_batch.find_micro_batch`.
        """

    def poll(self, timeout_seconds: float) -> list[RunEvent]:
        """What happened since the last call; waits up to ``timeout_seconds`` for something."""
