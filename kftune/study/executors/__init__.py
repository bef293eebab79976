"""Executors: where runs happen."""

from kftune.study.executors.local import (
    Finished,
    LocalExecutor,
    Lost,
    Progressed,
    RunEvent,
    Started,
    TimedOut,
    Waiting,
)

__all__ = ["Finished", "LocalExecutor", "Lost", "Progressed", "RunEvent", "Started", "TimedOut", "Waiting"]
