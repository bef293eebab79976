"""Worker processes on this host, one per device slot, kept warm between runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from kftune.results import RunSpec
from kftune.study.executors._process import GoneError, WorkerProcess
from kftune.study.executors.affinity import pin
from kftune.study.executors.leases import Leases, Request
from kftune.study.executors.ledger import Ledger
from kftune.study.executors.protocol import (
    Asked,
    Finished,
    Lost,
    Progressed,
    RunEvent,
    Started,
    TimedOut,
    Waiting,
)
from kftune.study.worker import Done, Point, Question, Ready, Verdict
from kftune.training.loop.micro_batch import find_micro_batch, is_too_large, probe

__all__ = ["LocalExecutor"]

_PROBE_LIMIT_SECONDS = 600.0
_PROBE_POLL_SECONDS = 1.0
_WAITING_SECONDS = 0.05  # between two looks whether a device is free


@dataclass
class _Submission:
    """A run that waits for its device, or is on it."""

    spec: RunSpec
    limit_seconds: float | None
    silence_seconds: float | None
    request: Request
    submitted_at: float
    begun_at: float | None = None
    heard_at: float = 0.0
    is_asking: bool = False

    def begin(self) -> None:
        self.begun_at = self.heard_at = time.perf_counter()

    def hear(self, *, asks: bool = False) -> None:
        self.heard_at = time.perf_counter()
        self.is_asking = asks

    def wall_seconds(self) -> float:
        return time.perf_counter() - (self.begun_at or self.submitted_at)

    def overdue(self) -> str | None:
        """Why the run is to be killed now; None if it is not."""
        if self.begun_at is None:
            return None
        if self.limit_seconds is not None and self.wall_seconds() > self.limit_seconds:
            return f"killed after {self.limit_seconds:.0f} s of wall time"
        silence_seconds = 0.0 if self.is_asking else time.perf_counter() - self.heard_at
        if self.silence_seconds is not None and silence_seconds > self.silence_seconds:
            return f"killed after {self.silence_seconds:.0f} s without a word from it"
        return None


class LocalExecutor:
    """Runs on this host: slot i trains on ``devices[i]`` in a worker process of its own.

    An :class:`~kftune.study.executors.protocol.Executor`. A run begins when its slot's GPU, or as many CPU cores as it
    has threads, are free of any other kftune's runs; see :mod:`kftune.study.executors.leases`. Workers on the CPU are
    kept on the cores of their run.

    Args:
        devices: one entry per slot, ``"cpu"`` or ``"cuda:i"``.
        threads: threads per worker.
        ledger: told the seconds spent on starting workers and on waiting for devices.
        name: of the study file, for others who wait.

    Raises:
        UsageError: there is no place for the lock files.
    """

    def __init__(self, devices: Sequence[str], *, threads: int, ledger: Ledger, name: str = "") -> None:
        self.devices = tuple(devices)
        self._threads = threads
        self._ledger = ledger
        self._leases = Leases(devices, threads=threads, name=name)
        self._workers: dict[int, WorkerProcess] = {}
        self._submissions: dict[int, _Submission] = {}
        self._events: list[RunEvent] = []

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- what a session asks for ------------------------------------------------------------------------------------

    def submit(
        self, slot: int, spec: RunSpec, *, limit_seconds: float | None, silence_seconds: float | None = None
    ) -> None:
        """Train ``spec`` on an idle slot, as soon as its device is free.

        Args:
            slot: the slot.
            spec: the run.
            limit_seconds: wall seconds after which it is killed; waiting for the device does not count.
            silence_seconds: seconds after the last that was heard of it (its start, a point) after which it is killed;
                waiting to be judged does not count.
        """
        if slot in self._submissions:
            raise RuntimeError(f"slot {slot} is busy")
        request = self._leases.request(self.devices[slot])
        self._submissions[slot] = _Submission(
            spec, limit_seconds, silence_seconds, request, submitted_at=time.perf_counter()
        )
        self._begin_if_granted(slot)

    def judge(self, slot: int, *, goes_on: bool) -> None:
        """Tell a run that has asked (:class:`Asked`) whether it may go on."""
        if slot in self._submissions:  # not killed for its time meanwhile
            self._submissions[slot].hear()
            self._workers[slot].send(Verdict(goes_on))

    def idle_slots(self) -> list[int]:
        """Slots that can be given a run."""
        return [slot for slot in range(len(self.devices)) if slot not in self._submissions]

    def waiting(self) -> list[Waiting]:
        """Runs that were submitted and wait for their devices."""
        return [
            Waiting(slot, self.devices[slot], submission.request.holders())
            for slot, submission in self._submissions.items()
            if submission.begun_at is None
        ]

    def withdraw(self) -> list[int]:
        """Forget the runs that wait for their devices; returns their slots."""
        slots = [slot for slot, submission in self._submissions.items() if submission.begun_at is None]
        for slot in slots:
            self._end(slot)
        return slots

    def notice(self) -> str | None:
        """What a person should know of how the slots share the cores; None if there is nothing."""
        return self._leases.notice()

    def retire(self, slot: int) -> None:
        """End an idle slot's worker; the next run gets a new one (after a crash its state cannot be trusted)."""
        if slot in self._workers:
            self._workers.pop(slot).stop()

    def close(self) -> None:
        """End all workers, busy or not."""
        for slot in list(self._workers):
            self.retire(slot)
        for slot in list(self._submissions):
            self._end(slot)

    def find_micro_batch(self, slot: int, spec: RunSpec, *, wanted: int) -> int | None:
        """The largest micro-batch up to ``wanted`` with which ``spec`` fits in the memory of an idle slot's device.

        Every size is tried in a worker of its own, which may die of it. Takes seconds for each; what happens on other
        slots meanwhile is reported by the next :meth:`poll`.

        Returns:
            See :func:`~kftune.training.loop.micro_batch.find_micro_batch`.
        """
        self.retire(slot)
        return find_micro_batch(wanted, lambda micro: self._fits(slot, probe(spec, wanted=wanted, micro=micro)))

    def _fits(self, slot: int, spec: RunSpec) -> bool:
        others: list[RunEvent] = []
        self.submit(slot, spec, limit_seconds=_PROBE_LIMIT_SECONDS)
        while True:
            for event in self.poll(_PROBE_POLL_SECONDS):
                if event.slot != slot:
                    others.append(event)
                elif isinstance(event, Finished | Lost | TimedOut):
                    self.retire(slot)
                    self._events += others
                    if isinstance(event, Finished):
                        return not is_too_large(event.result)
                    return isinstance(event, TimedOut)  # it is slow, but was not killed for its memory

    # -- what happens ------------------------------------------------------------------------------------------------

    def poll(self, timeout_seconds: float) -> list[RunEvent]:
        """What happened since the last call; waits up to ``timeout_seconds`` for something."""
        deadline = time.perf_counter() + timeout_seconds
        while True:
            self._look(max(0.0, deadline - time.perf_counter()))
            if self._events or time.perf_counter() >= deadline:
                events, self._events = self._events, []
                return events

    def _look(self, timeout_seconds: float) -> None:
        """Begin what can begin, read what has come, kill what takes too long."""
        for slot in list(self._submissions):
            self._begin_if_granted(slot)
        if self._events:
            timeout_seconds = 0.0
        elif any(submission.begun_at is None for submission in self._submissions.values()):
            timeout_seconds = min(timeout_seconds, _WAITING_SECONDS)
        by_connection = {worker.connection: slot for slot, worker in self._workers.items()}
        for connection in wait(list(by_connection), timeout_seconds):
            if isinstance(connection, Connection):
                self._read(by_connection[connection])
        for slot, worker in list(self._workers.items()):
            # A process that it has started may hold the connection open.
            if worker.is_gone() and not worker.has_more():
                self._lose(slot)
        for slot, submission in list(self._submissions.items()):
            reason, wall_seconds = submission.overdue(), submission.wall_seconds()
            if reason is not None:
                self.retire(slot)
                self._end(slot)
                self._events.append(TimedOut(slot, reason, wall_seconds))

    def _begin_if_granted(self, slot: int) -> None:
        """Send a run that has got its device to its worker."""
        submission = self._submissions[slot]
        if submission.begun_at is not None or not submission.request.is_granted():
            return
        waited_seconds = submission.wall_seconds()
        submission.begin()
        self._ledger.add("waiting", waited_seconds)
        self._events.append(Started(slot, waited_seconds))
        # A worker that died while idle is noticed here or, if it dies later, by poll().
        if slot in self._workers and self._workers[slot].is_gone():
            self.retire(slot)
        if slot not in self._workers:
            self._workers[slot] = WorkerProcess(threads=self._threads)
        if submission.request.cpus:
            pin(self._workers[slot].pid, submission.request.cpus)
        self._workers[slot].send(submission.spec)

    def _read(self, slot: int) -> None:
        """Take a worker's next message."""
        worker, submission = self._workers[slot], self._submissions.get(slot)
        try:
            message = worker.receive()
        except GoneError as error:
            self._lose(slot, str(error))
            return
        if isinstance(message, Ready):
            self._ledger.add("worker_start", time.perf_counter() - worker.started_at)
            # The run begins now: starting the worker is not its time.
            if submission is not None:
                submission.begin()
        elif submission is not None and isinstance(message, Point):
            submission.hear()
            self._events.append(Progressed(slot, message.point))
        elif submission is not None and isinstance(message, Question):
            submission.hear(asks=True)
            self._events.append(Asked(slot))
        elif submission is not None and isinstance(message, Done):
            self._end(slot)
            self._events.append(Finished(slot, message.result, submission.wall_seconds(), message.changed))
            if message.changed:  # later runs shall not compute with it
                self.retire(slot)

    def _lose(self, slot: int, reason: str = "") -> None:
        """A worker is gone, or is not to be understood."""
        submission = self._submissions.get(slot)
        wall_seconds = submission.wall_seconds() if submission is not None else 0.0
        how_it_ended = self._workers.pop(slot).stop()
        if submission is not None and submission.begun_at is not None:
            self._end(slot)
            self._events.append(Lost(slot, reason or how_it_ended, wall_seconds))

    def _end(self, slot: int) -> None:
        """The slot is idle again, and its device free for others."""
        self._submissions.pop(slot).request.release()
