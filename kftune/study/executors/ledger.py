"""Where a session's seconds go, outside the runs themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Ledger"]


_KINDS = ("asking", "telling", "storing", "worker_start", "waiting", "probing", "busy", "lost")


class Ledger:
    """Seconds of a session by kind.

    ``asking``, ``telling`` and ``storing`` are the runner's own work; ``busy`` (in runs), ``worker_start`` and
    ``waiting`` (for devices that other processes use) are sums over the slots.
    """

    def __init__(self, *, n_slots: int) -> None:
        self._started = time.perf_counter()
        self._seconds = dict.fromkeys(_KINDS, 0.0)
        self._n_slots = n_slots

    @contextmanager
    def counted(self, kind: str) -> Iterator[None]:
        """Add the time inside the ``with`` block to ``kind``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(kind, time.perf_counter() - started)

    def add(self, kind: str, seconds: float) -> None:
        """Add seconds measured elsewhere."""
        self._seconds[kind] += seconds

    def wall_seconds(self) -> float:
        """Since the session began."""
        return time.perf_counter() - self._started

    def to_dict(self) -> dict[str, float]:
        """The state now, for storage."""
        return {"wall": self.wall_seconds(), **self._seconds, "slots": float(self._n_slots)}
