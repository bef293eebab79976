"""Executors: where runs happen."""

from kftune.study.executors.local import Finished, LocalExecutor, Lost, Progressed, RunEvent, TimedOut

__all__ = ["Finished", "LocalExecutor", "Lost", "Progressed", "RunEvent", "TimedOut"]
