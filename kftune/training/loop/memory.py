"""How much memory a run may take, so that one that needs more ends as ``out_of_memory`` and not with the machine's."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from kftune.errors import UsageError

__all__ = ["exception_line", "is_out_of_memory", "limited_memory", "release_memory"]

_VARIABLE = "KFTUNE_MEMORY_LIMIT"
_STATUS = Path("/proc/self/status")
_CGROUPS = Path("/sys/fs/cgroup")
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "_ALLOC_FAILED")


@contextmanager
def limited_memory(device: torch.device, *, share: float | None = None) -> Iterator[None]:
    """Inside the block, allocations beyond the limit fail.

    On a CPU (Linux) the limit is on the process' data (RLIMIT_DATA): what it has already and what is available now in
    the machine and the control group, or ``KFTUNE_MEMORY_LIMIT`` bytes in all. Without it the kernel would grant
    everything, and kill something when the memory is used. On a GPU it is on torch's allocator, which needs none:
    ``KFTUNE_MEMORY_LIMIT`` bytes in all or, with ``share``, what it has and what is free now.

    Args:
        device: the run's.
        share: how much of what is available (or of what ``KFTUNE_MEMORY_LIMIT`` leaves) may be used; None for all.

    Raises:
        UsageError: ``KFTUNE_MEMORY_LIMIT`` is no whole number of bytes.
    """
    if device.type == "cuda":
        with _limited_cuda(device, share):
            yield
    elif _STATUS.exists():
        with _limited_data(share or 1.0):
            yield
    else:
        yield


def _named_limit() -> int | None:
    text = os.environ.get(_VARIABLE)
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(f"{_VARIABLE} must be a whole number of bytes, got {text!r}")
    return int(text)


@contextmanager
def _limited_data(share: float) -> Iterator[None]:
    import resource  # not on every system

    named = _named_limit()
    used = _data_bytes()
    free = max(0, named - used) if named is not None else _available_bytes()
    limit = used + int(share * free)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [bound for bound in (limit, soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts: private writable memory of this process, touched or not."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _available_bytes() -> int:
    """What can be used now without swapping and without being killed."""
    return min([int(psutil.virtual_memory().available), *_available_in_cgroups()])


def _available_in_cgroups() -> Iterator[int]:
    """What this process' control groups with a limit leave."""
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used = _CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        innermost = root / path.lstrip("/")
        for directory in (innermost, *innermost.parents):
            if directory.is_relative_to(root) and (directory / limit).exists():
                bound = (directory / limit).read_text().strip()
                if bound != "max":
                    taken = int((directory / used).read_text()) - _file_cache(directory / "memory.stat")
                    yield max(0, int(bound) - taken)


def _file_cache(statistics: Path) -> int:
    """Bytes of a control group's use that the kernel gives up when they are needed."""
    rows = (line.split() for line in statistics.read_text().splitlines())
    return sum(int(value) for name, value in rows if name == "inactive_file")


@contextmanager
def _limited_cuda(device: torch.device, share: float | None) -> Iterator[None]:
    named = _named_limit()
    if named is None and share is None:
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    whole = named if named is not None else free + torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (share or 1.0) * whole / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU's or torch's CPU allocator, a library or Python was refused memory (mostly plain RuntimeErrors)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in exception_line(error) for sign in _SIGNS)
    )


def exception_line(error: BaseException) -> str:
    """``"ValueError: …"``, also of an exception that cannot even say what it is."""
    return "".join(traceback.format_exception_only(error)).strip()


def release_memory() -> None:
    """Give back what nothing refers to any more: reference cycles, and what torch keeps of a GPU's memory for later."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no annotation here
        torch.cuda.empty_cache()
