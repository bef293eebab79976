"""The worker process: trains the runs it is sent, one after another, and streams their curves back.

Started as ``python -m kftune.study.worker FD``; ``FD`` is its end of a socket pair. It reads pickled
:class:`~kftune.results.RunSpec` objects and answers with :class:`Ready`, :class:`Point`, :class:`Question` and
:class:`Done`. A run that is judged asks after every point but the first and the last whether it may go on, and waits
for the :class:`Verdict` with the training clock stopped.
It ends when the other end closes, also in the middle of a run: a runner that dies leaves no worker behind.
"""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection

from kftune.results import CurvePoint, RunResult, RunSpec

__all__ = ["Done", "Point", "Question", "Ready", "Verdict", "main"]

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


@dataclass(frozen=True)
class Ready:
    """The worker has imported what it needs."""


@dataclass(frozen=True)
class Point:
    """A new point on the curve of the run in progress."""

    point: CurvePoint


@dataclass(frozen=True)
class Question:
    """The run in progress waits to be told whether it may go on after the point it has just sent."""


@dataclass(frozen=True)
class Done:
    """The run has ended."""

    result: RunResult


@dataclass(frozen=True)
class Verdict:
    """To the worker: the answer to its :class:`Question`."""

    goes_on: bool


def main() -> None:
    """Serve until the connection closes."""
    _die_with_the_runner()
    connection = Connection(int(sys.argv[1]))
    inbox: queue.SimpleQueue[RunSpec] = queue.SimpleQueue()
    verdicts: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox, verdicts), daemon=True).start()

    import torch

    from kftune.optim import OPTIMIZERS
    from kftune.problems import PROBLEMS
    from kftune.training.loop.trainer import train

    def report(point: CurvePoint) -> None:
        connection.send(Point(point))

    def ask(point: CurvePoint) -> bool:
        connection.send(Question())
        return verdicts.get().goes_on

    OPTIMIZERS.names(), PROBLEMS.names()  # imports every plug-in before the first run's set-up is timed
    connection.send(Ready())
    while True:
        spec = inbox.get()
        torch.set_num_threads(spec.threads)
        result = train(spec, report, goes_on=ask) if spec.is_judged else train(spec, report)
        connection.send(Done(result))
        # What is alive now are modules: the collections after later runs need not look at them (0.2 s each).
        gc.freeze()


def _die_with_the_runner() -> None:
    """Have Linux kill this process when the runner dies, also where no thread of it gets to notice.

    A call that holds Python's lock for long would keep :func:`_receive` from seeing the connection close.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _receive(connection: Connection, inbox: queue.SimpleQueue[RunSpec], verdicts: queue.SimpleQueue[Verdict]) -> None:
    """Sort what comes in; leave at once, whatever the main thread is doing, when the runner is gone."""
    while True:
        try:
            message = connection.recv()
            (verdicts if isinstance(message, Verdict) else inbox).put(message)
        except (EOFError, OSError):
            os._exit(0)


if __name__ == "__main__":
    # Under -m this module is called __main__; what it pickles must be found under its importable name.
    from kftune.study.worker import main as importable_main

    importable_main()
