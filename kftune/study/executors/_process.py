"""A worker process as its parent sees it: start, messages both ways, end."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

import psutil

from kftune.study.worker import Done, Point, Question, Ready, end_session

__all__ = ["GoneError", "WorkerProcess"]

_EXIT_SECONDS = 0.5  # in which one ends that has nothing to do any more
_GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
_MESSAGE_SECONDS = 10  # within which the rest of a message has to come once it has begun
_MAX_MESSAGE_BYTES = 1 << 28
_LOG_TAIL_BYTES = 2000
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_CLOSED = "the worker, or code of the run in it, closed the connection to its runner"
_GARBAGE = "the worker, or code of the run in it, wrote garbage into the connection to its runner"


class GoneError(Exception):
    """The worker has died, or cannot be understood any more (then there is a message)."""


class WorkerProcess:
    """Starts ``python -m kftune.study.worker``.

    Args:
        threads: that its numerical libraries are told to use.

    Attributes:
        connection: to wait on until there is a message.
        started_at: reading of ``time.perf_counter``.
    """

    def __init__(self, *, threads: int) -> None:
        ours, theirs = socket.socketpair()
        # A message that breaks off shall not keep the runner waiting for the rest.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _MESSAGE_SECONDS, 0))
        self._log = tempfile.TemporaryFile(prefix="kftune-worker-")  # noqa: SIM115 - lives as long as the worker
        self.started_at = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kftune.study.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | {name: str(threads) for name in _THREAD_VARIABLES},
            start_new_session=True,  # a Ctrl-C in the terminal is the runner's to handle
        )
        theirs.close()
        self.connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def is_gone(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def send(self, message: Any) -> None:
        """Send anything that can be pickled; who reads next learns of it if the worker is gone."""
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(message)

    def receive(self) -> Ready | Point | Question | Done:
        """The next message.

        Raises:
            GoneError: there will be none any more.
        """
        try:
            data = self.connection.recv_bytes(_MAX_MESSAGE_BYTES)
        except (EOFError, ConnectionResetError):
            raise GoneError from None
        except OSError:  # a length that no message has, or too little after it
            raise GoneError(_GARBAGE) from None
        try:
            message = pickle.loads(data)
        except Exception:  # noqa: BLE001 - unpickling what is no pickle raises whatever its bytes happen to mean
            raise GoneError(_GARBAGE) from None
        if not isinstance(message, Ready | Point | Question | Done):
            raise GoneError(_GARBAGE)
        return message

    def has_more(self) -> bool:
        """Whether there is a message, or its end, to be read now."""
        return self.connection.poll()

    def stop(self) -> str:
        """End the process and all that it has started; returns the end of what it printed and, last, how it ended."""
        started = self._started()
        self.connection.close()
        ended = self._ended_within(_EXIT_SECONDS)
        if not ended:
            self._process.terminate()
            if not self._ended_within(_GRACE_SECONDS):
                self._process.kill()
                self._process.wait()
        reason = _describe_exit(self._process.returncode) if ended else _CLOSED
        end_session(self.pid)
        for child in started:  # some may have left the session
            with contextlib.suppress(psutil.Error):
                child.kill()
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - _LOG_TAIL_BYTES))
        output = self._log.read().decode(errors="replace").strip()
        self._log.close()
        return f"{output}\n{reason}" if output else reason

    def _started(self) -> list[psutil.Process]:
        if self.is_gone():
            return []
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.Error:  # it has ended
            return []

    def _ended_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"the worker exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # one of the real-time signals
        name = f"signal {-code}"
    return f"the worker was ended by {name}"
