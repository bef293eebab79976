"""The loop of a worker process."""

from __future__ import annotations

import ctypes
import gc
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection

from kftune.results import CurvePoint, RunSpec
from kftune.study.worker._messages import Done, Point, Question, Ready, Verdict
from kftune.study.worker._session import guard_session

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def main() -> None:
    """Serve until the connection closes."""
    _die_with_the_runner()
    guard_session()
    connection = Connection(int(sys.argv[1]))
    inbox: queue.SimpleQueue[RunSpec] = queue.SimpleQueue()
    verdicts: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox, verdicts), daemon=True).start()

    import torch

    from kftune.optim import OPTIMIZERS
    from kftune.problems import PROBLEMS
    from kftune.study.worker._state import changes, fresh_random_states, leaks, read_state, resident_bytes
    from kftune.training.loop.trainer import train

    def report(point: CurvePoint) -> None:
        connection.send(Point(point))

    def ask(point: CurvePoint) -> bool:
        connection.send(Question())
        return verdicts.get().goes_on

    OPTIMIZERS.names(), PROBLEMS.names()  # imports every plug-in before the first run's set-up is timed
    connection.send(Ready())
    resident = resident_bytes()
    while True:
        spec = inbox.get()
        torch.set_num_threads(spec.threads)
        fresh_random_states()
        state = read_state()
        result = train(spec, report, goes_on=ask) if spec.is_judged else train(spec, report)
        connection.send(Done(result, (*changes(state), *leaks(resident))))
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
