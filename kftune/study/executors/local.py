"""Worker processes on this host, one per device slot, kept warm between runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO, TypeAlias

from kftune.study.ledger import Ledger
from kftune.study.worker import Done, Point, Ready
from kftune.training.results import CurvePoint, RunResult, RunSpec

__all__ = ["Finished", "LocalExecutor", "Lost", "Progressed", "RunEvent", "TimedOut"]

_GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
_LOG_TAIL_BYTES = 2000
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Progressed:
    """A run's curve has a new point."""

    slot: int
    point: CurvePoint


@dataclass(frozen=True)
class Finished:
    """A run ended and reported its result. ``wall_seconds`` is from submission to here."""

    slot: int
    result: RunResult
    wall_seconds: float


@dataclass(frozen=True)
class Lost:
    """A worker died with its run; ``reason`` says how."""

    slot: int
    reason: str
    wall_seconds: float


@dataclass(frozen=True)
class TimedOut:
    """A run passed its limit and its worker was killed."""

    slot: int
    limit_seconds: float
    wall_seconds: float


RunEvent: TypeAlias = Progressed | Finished | Lost | TimedOut


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    log: IO[bytes]
    started_at: float
    submitted_at: float | None = None
    limit_seconds: float | None = None

    def wall_seconds(self) -> float:
        return time.perf_counter() - (self.submitted_at or self.started_at)


class LocalExecutor:
    """Runs on this host: slot i trains on ``devices[i]`` in a worker process of its own.

    Args:
        devices: one entry per slot, ``"cpu"`` or ``"cuda:i"``.
        threads: threads per worker.
        ledger: told the seconds spent on starting workers.
    """

    def __init__(self, devices: Sequence[str], *, threads: int, ledger: Ledger) -> None:
        self.devices = tuple(devices)
        self._threads = threads
        self._ledger = ledger
        self._workers: dict[int, _Worker] = {}

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, slot: int, spec: RunSpec, *, limit_seconds: float | None) -> None:
        """Train ``spec`` on an idle slot; kill it when it has taken ``limit_seconds`` of wall time."""
        worker = self._workers.get(slot) or self._start(slot)
        if worker.submitted_at is not None:
            raise RuntimeError(f"slot {slot} is busy")
        # A worker that died while idle is noticed here or, if it dies later, by poll().
        if worker.process.poll() is not None:
            self._stop(slot)
            worker = self._start(slot)
        worker.submitted_at = time.perf_counter()
        worker.limit_seconds = limit_seconds
        with contextlib.suppress(BrokenPipeError):  # poll() reports a worker that is gone
            worker.connection.send(spec)

    def idle_slots(self) -> list[int]:
        """Slots that can be given a run."""
        return [slot for slot in range(len(self.devices)) if not self._is_busy(slot)]

    def _is_busy(self, slot: int) -> bool:
        worker = self._workers.get(slot)
        return worker is not None and worker.submitted_at is not None

    def poll(self, timeout_seconds: float) -> list[RunEvent]:
        """What happened since the last call; waits up to ``timeout_seconds`` for something."""
        by_connection = {worker.connection: slot for slot, worker in self._workers.items()}
        events: list[RunEvent] = []
        for connection in wait(list(by_connection), timeout_seconds):
            if isinstance(connection, Connection):
                events += self._read(by_connection[connection])
        for slot, worker in list(self._workers.items()):
            limit = worker.limit_seconds
            if worker.submitted_at is not None and limit is not None and worker.wall_seconds() > limit:
                wall_seconds = worker.wall_seconds()
                self._stop(slot)
                events.append(TimedOut(slot, limit, wall_seconds))
        return events

    def _read(self, slot: int) -> list[RunEvent]:
        worker = self._workers[slot]
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            busy, wall_seconds = worker.submitted_at is not None, worker.wall_seconds()
            reason = self._stop(slot)
            return [Lost(slot, reason, wall_seconds)] if busy else []
        if isinstance(message, Ready):
            self._ledger.add("worker_start", time.perf_counter() - worker.started_at)
            # The run begins now: starting the worker is not its time.
            if worker.submitted_at is not None:
                worker.submitted_at = time.perf_counter()
            return []
        if isinstance(message, Point):
            return [Progressed(slot, message.point)]
        if isinstance(message, Done):
            wall_seconds = worker.wall_seconds()
            worker.submitted_at = worker.limit_seconds = None
            return [Finished(slot, message.result, wall_seconds)]
        raise TypeError(f"unexpected message from a worker: {message!r}")

    def _start(self, slot: int) -> _Worker:
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile(prefix="kftune-worker-")  # noqa: SIM115 - lives as long as the worker
        environment = os.environ | {name: str(self._threads) for name in _THREAD_VARIABLES}
        started_at = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "kftune.study.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal is the runner's to handle
        )
        theirs.close()
        worker = _Worker(process, Connection(ours.detach()), log, started_at)
        self._workers[slot] = worker
        return worker

    def _stop(self, slot: int) -> str:
        """End a slot's worker; returns how it ended, for people."""
        worker = self._workers.pop(slot)
        worker.connection.close()
        gone_by_itself = _wait_for(worker.process, 0.5)
        if not gone_by_itself:
            worker.process.terminate()
            if not _wait_for(worker.process, _GRACE_SECONDS):
                worker.process.kill()
                worker.process.wait()
        reason = _describe_exit(worker.process.returncode)
        worker.log.seek(0, os.SEEK_END)
        worker.log.seek(max(0, worker.log.tell() - _LOG_TAIL_BYTES))
        output = worker.log.read().decode(errors="replace").strip()
        worker.log.close()
        return f"{reason}\n{output}" if output else reason

    def retire(self, slot: int) -> None:
        """End an idle slot's worker; the next run gets a new one (after a crash its state cannot be trusted)."""
        if slot in self._workers:
            self._stop(slot)

    def close(self) -> None:
        """End all workers, busy or not."""
        for slot in list(self._workers):
            self._stop(slot)


def _wait_for(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"the worker was ended by {signal.Signals(-code).name}"
    return f"the worker exited with code {code}"
