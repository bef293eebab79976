"""A worker's session: the processes that its runs have started end with it, also when it has no time to end them."""

from __future__ import annotations

import contextlib
import os
import select
import signal

import psutil


def end_session(leader: int) -> None:
    """Kill every process of a session (POSIX) whose leader has ended.

    Args:
        leader: process id that the session's leader had; it is the session's id as long as there is a process in it.
    """
    if not hasattr(os, "getsid"):
        return
    seen: set[int] = set()
    # One that starts another while this goes on: look again until there is none that is new.
    while new := {pid for pid in psutil.pids() if _session_of(pid) == leader} - seen:
        for pid in new:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        seen |= new


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def guard_session() -> None:
    """Have a small process of its own call :func:`end_session` when this one, a session's leader, has ended.

    Linux only; elsewhere, and for a process that leads no session, nothing happens. Call it before there are threads.
    """
    me = os.getpid()
    if not hasattr(os, "pidfd_open") or os.getsid(0) != me:
        return
    try:
        watched = os.pidfd_open(me)
    except OSError:  # a kernel, or a sandbox, without it
        return
    child = os.fork()
    if child:
        os.close(watched)
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:  # nobody's child, so that nobody takes it for one of the worker's runs'
            _watch(watched, me)
    finally:
        os._exit(0)


def _watch(watched: int, leader: int) -> None:
    os.closerange(0, watched)
    os.closerange(watched + 1, os.sysconf("SC_OPEN_MAX"))
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    poll.poll()
    end_session(leader)
