"""Executors: where runs happen."""

from kftune.study.executors.local import (
    Asked,
    Finished,
    LocalExecutor,
    Lost,
    Progressed,
    RunEvent,
    Started,
    TimedOut,
    Waiting,
)

__all__ = ["Asked", "Finished", "LocalExecutor", "Lost", "Progressed", "RunEvent", "Started", "TimedOut", "Waiting"]
