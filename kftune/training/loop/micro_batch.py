"""The largest micro-batch that fits in a device's memory, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from kftune.results import BATCH_PARAMETERS, Outcome, RunResult, RunSpec

__all__ = ["find_micro_batch", "is_too_large", "probe"]

_MEMORY_SHARE = 0.9  # later updates may need a little more, and find the memory in pieces
_PROBE_UPDATES = 2  # the second meets what the first has left: averages, inverses, momentum
_PRECISION = 8


def find_micro_batch(wanted: int, fits: Callable[[int], bool]) -> int | None:
    """The largest size up to ``wanted`` that fits, to an eighth; by halving, then bisection.

    Args:
        wanted: examples behind one update, at most.
        fits: tries a size.

    Returns:
        None if nothing fits: cutting the batch does not help (of a method that keeps something of every example, say).
    """
    low, high = wanted, wanted + 1
    while not fits(low):
        low, high = low // 2, low
        if low == 0:
            return None
    while high - low > max(1, low // _PRECISION):
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def probe(spec: RunSpec, *, wanted: int, micro: int) -> RunSpec:
    """A short run that needs the memory of ``spec`` with updates of ``wanted`` examples in micro-batches of ``micro``.

    It makes two whole updates, statistics and inversions included, with a tenth of the memory left free.
    """
    own = {name: value for name, value in spec.params.items() if name not in BATCH_PARAMETERS}
    return replace(
        spec,
        params={**own, "effective_batch_size": wanted},
        micro_batch=micro,
        memory_share=_MEMORY_SHARE,
        budget_seconds=None,
        budget_updates=_PROBE_UPDATES,
        n_evaluations=1,
        is_judged=False,
    )


def is_too_large(result: RunResult) -> bool:
    """Whether a probe failed for want of memory. (What fails otherwise would fail with smaller batches, too.)"""
    return result.outcome is Outcome.OUT_OF_MEMORY
