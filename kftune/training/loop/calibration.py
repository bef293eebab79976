"""How fast the machine is while a run trains: a short reference workload, timed outside the training clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from kftune.results import Calibration

__all__ = ["SpeedGauge", "reference_seconds"]

_SIDES = {"cpu": (256, 384), "cuda": (1024, 512)}  # of the product and of the Cholesky decomposition; 1 to 2 ms
_REPETITIONS = 4
_BATCHES = 2
_MAX_SHARE = 0.02  # of the train seconds so far
_MIN_HISTORY = 3


class SpeedGauge:
    """Times a float32 matrix product and a Cholesky decomposition on a run's device, with its threads.

    A measurement is the lower of two times of four repetitions each, about 10 ms: whatever happens once is left out,
    but not what a core loses to other processes. (A repetition alone, or the fastest of several, can fit between two
    turns of another process, and would not see it.)

    Args:
        device: the run's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        n_product, n_cholesky = _SIDES["cuda" if device.type == "cuda" else "cpu"]
        self._A = _cosines(n_product, device)
        self._S = _cosines(n_cholesky, device).add_(torch.eye(n_cholesky, device=device))  # positive definite
        self._train_seconds: list[float] = []
        self._seconds: list[float] = []
        self._spent = 0.0

    def measure(self, train_seconds: float) -> None:
        """Measure now, unless it was done at this reading of the training clock already."""
        if self._train_seconds and self._train_seconds[-1] == train_seconds:
            return
        started = time.perf_counter()
        self._work(1)  # what the run has driven out of the caches
        seconds = min(self._work(_REPETITIONS) for _ in range(_BATCHES))
        self._spent += time.perf_counter() - started
        self._train_seconds.append(train_seconds)
        self._seconds.append(seconds)

    def measure_if_cheap(self, train_seconds: float) -> None:
        """Measure now, if all measurements together stay below 2% of the train seconds."""
        cost = self._spent / max(1, len(self._seconds))
        if self._spent + cost <= _MAX_SHARE * train_seconds:
            self.measure(train_seconds)

    def calibration(self) -> Calibration | None:
        """What was measured; None before the first measurement."""
        if not self._seconds:
            return None
        return Calibration(train_seconds=tuple(self._train_seconds), seconds=tuple(self._seconds))

    @torch.no_grad()
    def _work(self, repetitions: int) -> float:
        """Wall seconds of so many repetitions."""
        self._synchronize()
        started = time.perf_counter()
        for _ in range(repetitions):
            torch.mm(self._A, self._A)
            torch.linalg.cholesky_ex(self._S)
        self._synchronize()
        return time.perf_counter() - started

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _cosines(n: int, device: torch.device) -> torch.Tensor:
    """cos(i − j); positive semidefinite. (Random numbers would be taken from the run's.)"""
    i = torch.arange(n, dtype=torch.float32, device=device)
    return torch.cos(i[:, None] - i)


def reference_seconds(history: Sequence[float]) -> float | None:
    """The usual seconds of the workload: the median of what was measured before.

    Args:
        history: measurements (:attr:`~kftune.results.Calibration.seconds`) of one host, device and number of
            threads.

    Returns:
        None for fewer than three.
    """
    return statistics.median(history) if len(history) >= _MIN_HISTORY else None
