"""The training clock: monotonic, pausable, synchronised on CUDA, and split into phases that add up to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

import torch

from kftune.results import PHASES

__all__ = ["Clock"]


class Clock:
    """Counts training seconds between :meth:`resume` and :meth:`pause`.

    On CUDA every reading waits for the device, so queued work is counted where it was caused. The boundaries of
    phases do not wait: they are marked by events in the stream, measured at the next reading and scaled to the
    host's seconds, so that watching the phases does not slow the training down.

    Phases nest and are exclusive: while an inner phase runs, the outer one stands still. Time outside any phase
    is ``other``.

    Args:
        device: whose work is timed.
        now: monotonic source of seconds.
    """

    def __init__(self, device: torch.device, *, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._cuda = device if device.type == "cuda" else None
        self._total = 0.0
        self._started_at: float | None = None
        self._read_at = 0.0
        self._stack = ["other"]
        self._phase_totals = dict.fromkeys(PHASES, 0.0)
        self._mark = 0.0
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._contexts = {name: _Phase(self, name) for name in PHASES}

    @property
    def running(self) -> bool:
        """Whether the clock is counting."""
        return self._started_at is not None

    def resume(self) -> None:
        """Start, or go on after a pause. Work queued before is not counted."""
        if self._started_at is not None:
            raise RuntimeError("the clock is running already")
        self._synchronize()
        self._started_at = self._read_at = self._mark = self._now()
        self._open_segment()

    def pause(self) -> float:
        """Stop counting; returns :meth:`seconds`."""
        seconds = self.seconds()
        self._total = seconds
        self._started_at = None
        self._events.clear()
        return seconds

    def seconds(self) -> float:
        """Training seconds so far, all queued work of the device included."""
        if self._started_at is None:
            return self._total
        self._close_segment()
        self._synchronize()
        now = self._now() if self._cuda else self._mark
        self._settle_events(now)
        self._read_at = now
        return self._total + now - self._started_at

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Attribute the time inside the ``with`` block to ``name``, one of :data:`PHASES`."""
        return self._contexts[name]

    def phase_seconds(self) -> dict[str, float]:
        """Seconds by phase up to the last reading; they add up to it."""
        return dict(self._phase_totals)

    def _close_segment(self) -> None:
        """Give the time since the last boundary to the current phase (on CUDA the next event does)."""
        if self._started_at is not None and self._cuda is None:
            now = self._now()
            self._phase_totals[self._stack[-1]] += now - self._mark
            self._mark = now

    def _enter(self, name: str) -> None:
        self._close_segment()
        self._stack.append(name)
        self._open_segment()

    def _exit(self) -> None:
        self._close_segment()
        self._stack.pop()
        self._open_segment()

    def _open_segment(self) -> None:
        if self._cuda is not None and self._started_at is not None:
            event = _timing_event()
            event.record(torch.cuda.current_stream(self._cuda))
            self._events.append((self._stack[-1], event))

    def _settle_events(self, now: float) -> None:
        """Measure the segments since the last reading on the device's own time line (CUDA only)."""
        if self._cuda is None:
            return
        last = _timing_event()
        last.record(torch.cuda.current_stream(self._cuda))
        last.synchronize()
        ends = [event for _, event in self._events[1:]] + [last]
        device_seconds = [start.elapsed_time(end) / 1000 for (_, start), end in zip(self._events, ends, strict=True)]
        host_seconds = now - self._read_at
        scale = host_seconds / sum(device_seconds) if sum(device_seconds) > 0 else 0.0
        for (name, _), seconds in zip(self._events, device_seconds, strict=True):
            self._phase_totals[name] += seconds * scale
        self._events = [(self._stack[-1], last)]

    def _synchronize(self) -> None:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no annotation here


class _Phase:
    """A reusable context manager: entering one costs a dictionary look-up and two clock readings."""

    __slots__ = ("_clock", "_name")

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name

    def __enter__(self) -> None:
        self._clock._enter(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clock._exit()
