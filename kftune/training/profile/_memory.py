"""The most memory that torch had allocated at one time while something ran."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity

_KINETO_LOG_LEVEL = "KINETO_LOG_LEVEL"
_SILENT = "99"


def peak_allocated_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Peak of what ``run`` allocates through torch beyond what there was before, in bytes.

    On CUDA the allocator knows. On a CPU every allocation and release is recorded: the process's resident memory would
    also count libraries, and memory that was released but not given back. Work space inside of LAPACK is not seen.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return int(torch.cuda.max_memory_allocated(device)) - before
    os.environ.setdefault(_KINETO_LOG_LEVEL, _SILENT)  # it would announce itself on standard error
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    return _highest_sum(recorded)


def _highest_sum(recorded: torch.profiler.profile) -> int:
    results = recorded.profiler.kineto_results if recorded.profiler is not None else None
    if results is None:
        raise RuntimeError("the profiler of torch recorded nothing")
    # torch's annotations lack nbytes().
    events: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()  # negative for a release
        peak = max(peak, now)
    return peak
