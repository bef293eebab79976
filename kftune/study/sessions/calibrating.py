"""Whether the machine was as fast as usual during a run."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from kftune.results import RunResult
from kftune.storage.repository import Repository, RunRecord
from kftune.study.config import StudyConfig
from kftune.training.loop.calibration import reference_seconds

__all__ = ["MachineSpeed", "threads_notice"]

_N_REMEMBERED = 1000  # measurements; about the last fifty runs


class MachineSpeed:
    """Knows the usual seconds of the reference workload on a device, from the runs of a study file on this host.

    They are of as many threads as the session's workers have: with others the workload is slower or faster.

    Args:
        config: the study file.
        repository: where its runs are stored.
        threads: of each worker.
    """

    def __init__(self, config: StudyConfig, *, repository: Repository, threads: int) -> None:
        self._tolerance = config.budget.tolerance
        self._is_timed = config.budget.seconds is not None
        self._history: dict[str, deque[float]] = {}
        if self._is_timed:
            for run in _runs_on_this_host(config, repository, threads):
                self._remember(run.result)

    def _remember(self, result: RunResult) -> None:
        if result.calibration is not None:
            history = self._history.setdefault(result.device_name, deque(maxlen=_N_REMEMBERED))
            history.extend(result.calibration.seconds)

    def judged(self, result: RunResult) -> RunResult:
        """The same result, its calibration beside the usual seconds (of the runs up to and with this one)."""
        if result.calibration is None or not self._is_timed:
            return result
        self._remember(result)
        reference = reference_seconds(tuple(self._history[result.device_name]))
        return replace(result, calibration=replace(result.calibration, reference=reference))

    def is_off(self, result: RunResult) -> bool:
        """Whether the machine was slower or faster than usual by more than the tolerance."""
        slowdown = result.calibration.slowdown if result.calibration is not None else None
        return slowdown is not None and max(slowdown, 1 / slowdown) > 1 + self._tolerance

    def described(self, result: RunResult) -> str:
        """In words."""
        slowdown = result.calibration.slowdown if result.calibration is not None else None
        if slowdown is None:
            return "the machine's speed is not known"
        factor, how = (slowdown, "slower") if slowdown >= 1 else (1 / slowdown, "faster")
        return f"the machine was {factor:.2f} times {how} than usual"


def threads_notice(config: StudyConfig, *, repository: Repository, devices: Sequence[str]) -> str | None:
    """That runs have other threads than those of the session before, which had other workers; None if it is not so.

    With ``threads: auto`` the workers share the cores. What another host had is not known.

    Args:
        config: the study file.
        repository: where its sessions are stored.
        devices: one entry per worker.
    """
    earlier = repository.sessions(config.name)
    if not earlier or earlier[-1].host != socket.gethostname():
        return None
    before, now = (config.threads_per_worker(slots) for slots in (earlier[-1].devices, devices))
    if before == now:
        return None
    return (
        f"threads: auto is {now} for each worker now, and was {before} in the session before; "
        "runs of the two are not equally fast"
    )


def _runs_on_this_host(config: StudyConfig, repository: Repository, threads: int) -> list[RunRecord]:
    """Every run of a study file that was made here with so many threads, in the order of their ends."""
    host = socket.gethostname()
    here = {
        session.id
        for session in repository.sessions(config.name)
        if session.host == host and config.threads_per_worker(session.devices) == threads
    }
    runs = [
        run
        for purpose in ("search", "confirm")
        for superseded in (False, True)
        for run in repository.runs(curves=False, purpose=purpose, superseded=superseded)
        if run.session_id in here
    ]
    return sorted(runs, key=lambda run: run.started_at)
