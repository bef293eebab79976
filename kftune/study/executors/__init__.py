"""Executors: where runs happen."""

from __future__ import annotations

from collections.abc import Sequence

from kftune.study.executors.ledger import Ledger
from kftune.study.executors.local import LocalExecutor
from kftune.study.executors.protocol import (
    Asked,
    Executor,
    Finished,
    Lost,
    Progressed,
    RunEvent,
    Started,
    TimedOut,
    Waiting,
)

__all__ = [
    "Asked",
    "Executor",
    "Finished",
    "LocalExecutor",
    "Lost",
    "Progressed",
    "RunEvent",
    "Started",
    "TimedOut",
    "Waiting",
    "make_executor",
]


def make_executor(devices: Sequence[str], *, threads: int, ledger: Ledger, name: str) -> Executor:
    """The executor of a session's runs; the only place where one is made for a study.

    Args:
        devices: one entry per slot.
        threads: CPU threads per run.
        ledger: told the seconds spent on starting workers and on waiting for devices.
        name: of the study file, for others who wait.

    Raises:
        UsageError: it cannot be used here.
    """
    return LocalExecutor(devices, threads=threads, ledger=ledger, name=name)
