"""The CPU cores that this process may use, and keeping a worker on some of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Core", "cores_here", "pin"]

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology"
_CAN_PIN = hasattr(os, "sched_setaffinity")


@dataclass(frozen=True)
class Core:
    """A physical core.

    Attributes:
        key: the same for every process on this host.
        cpus: numbers of its logical CPUs that this process may use; two and more with simultaneous multithreading.
    """

    key: str
    cpus: frozenset[int]


def cores_here() -> tuple[Core, ...]:
    """The cores in this process' affinity mask, neighbours side by side; all there are where there are no masks."""
    cpus = sorted(os.sched_getaffinity(0)) if _CAN_PIN else range(os.cpu_count() or 1)
    by_core: dict[tuple[int, int], set[int]] = {}
    for cpu in cpus:
        by_core.setdefault(_package_and_core(cpu), set()).add(cpu)
    return tuple(Core(f"core-{package}-{core}", frozenset(own)) for (package, core), own in sorted(by_core.items()))


def _package_and_core(cpu: int) -> tuple[int, int]:
    """(socket, number of the core in it); every logical CPU is taken for a core where the system does not tell."""
    topology = Path(_TOPOLOGY.format(cpu))
    try:
        package, core = ((topology / name).read_text() for name in ("physical_package_id", "core_id"))
    except FileNotFoundError:
        return (0, cpu)
    return int(package), int(core)


def pin(pid: int, cpus: Iterable[int]) -> None:
    """Keep every thread of a process, and those that it will start, on some logical CPUs.

    Nothing happens where the system cannot do that, or if the process is gone.
    """
    if not _CAN_PIN:
        return
    allowed = frozenset(cpus)
    pinned: set[int] = set()
    # A thread that is started while this goes on has its starter's mask, old or new: look again until all are known.
    while new := _threads(pid) - pinned:
        for thread in new:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(thread, allowed)
            pinned.add(thread)


def _threads(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task")
    try:
        return {int(task.name) for task in tasks.iterdir()}
    except (FileNotFoundError, ProcessLookupError):  # the process is gone
        return set()
