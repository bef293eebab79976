"""``python -m kftune`` and its workers as real processes that start in a hundredth of the time.

Most of what a short study costs is the start of its processes: each imports torch, Optuna and scikit-learn anew, two to
three seconds. :class:`WarmPopen` forks the process of the test instead, which has imported them already, and makes the
child what a fresh interpreter would be: its own arguments, environment, directory, streams, signal handlers, plug-ins
and warnings, no file of its parent open but those that it was to inherit, no module of a user. It is a child like any
other, with a process id, and can be waited for, stopped and killed.

Only inside :func:`warm` (all tests but those marked ``cold``), and only commands that begin with ``python -m kftune``
or ``python -m kftune.study.worker`` are forked. With ``KFTUNE_TEST_COLD=1`` nothing is (``make test-all``), nor on
systems without fork, nor in a process that uses a GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import importlib
import inspect
import io
import logging
import os
import random
import signal
import site
import subprocess
import sys
import sysconfig
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

__all__ = ["START_SECONDS", "WarmPopen", "run", "warm"]

START_SECONDS = 15 if os.environ.get("KFTUNE_TEST_COLD") else 6
"""More than a worker needs to start and to make its first run's set-up on a slow machine."""

_PYTHONPATH = frozenset(os.environ.get("PYTHONPATH", "").split(os.pathsep))  # what this process started with
_REPOSITORY = Path(__file__).parents[2]
_PYTHON = sys.executable
_COMMANDS = {"kftune": "kftune.cli", "kftune.study.worker": "kftune.study.worker"}
_PATHS = sysconfig.get_paths()
_ROOTS = (
    *(_PATHS[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *site.getsitepackages(),
    sys.prefix,
    sys.base_prefix,
    str(_REPOSITORY),
)
_FRESH_FILTERS = (
    ("default", None, DeprecationWarning, "__main__", 0),
    ("ignore", None, DeprecationWarning, None, 0),
    ("ignore", None, PendingDeprecationWarning, None, 0),
    ("ignore", None, ImportWarning, None, 0),
    ("ignore", None, ResourceWarning, None, 0),
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


_is_warm = False


class WarmPopen(subprocess.Popen):  # type: ignore[type-arg]
    """:class:`subprocess.Popen`, forking where it can."""

    def _execute_child(self, *arguments: Any, **keywords: Any) -> None:
        execute = super()._execute_child  # type: ignore[misc]
        given = inspect.signature(execute).bind(*arguments, **keywords).arguments
        command = [os.fspath(part) for part in given["args"]] if isinstance(given["args"], list | tuple) else []
        if not _can_be_forked(command):
            execute(*arguments, **keywords)
            return
        _preload()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(command, given)
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            *(given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """:func:`subprocess.run` of text, captured, with a :class:`WarmPopen`."""
    timeout = options.pop("timeout", 240)
    with WarmPopen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@contextlib.contextmanager
def warm() -> Iterator[None]:
    """Inside the block, processes are forked: those of a :class:`WarmPopen`, and workers that this process starts."""
    global _is_warm  # noqa: PLW0603 - forked processes take it over
    from kftune.study.executors import _process

    cold = _process.subprocess
    _process.subprocess = types.SimpleNamespace(**(vars(cold) | {"Popen": WarmPopen}))  # type: ignore[assignment]
    _is_warm = True
    try:
        yield
    finally:
        _is_warm = False
        _process.subprocess = cold


def _can_be_forked(command: list[str]) -> bool:
    if not _is_warm or os.environ.get("KFTUNE_TEST_COLD") or sys.platform != "linux":
        return False
    if len(command) < 3 or command[0] != _PYTHON or command[1] != "-m" or command[2] not in _COMMANDS:
        return False
    if command[2] == "kftune" and _has_database_open():
        gc.collect()  # of a connection that nobody closed
        if _has_database_open():
            return False
    import torch

    return not torch.cuda.is_initialized()


def _has_database_open() -> bool:
    """SQLite takes the copies of its files in a forked process for open, which they are not."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            links.append(str(descriptor.readlink()))
    return any(link.endswith((".db", ".db-wal", ".db-shm")) for link in links)


def _preload() -> None:
    """Import what the commands and the workers import; done once, of course."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import GPyOpt  # noqa: F401
        import optuna  # noqa: F401
        import sklearn.datasets  # noqa: F401
        import torch._dynamo  # noqa: F401  # torch.optim's first step imports it

        from kftune.optim import OPTIMIZERS
        from kftune.problems import PROBLEMS
        from kftune.study.samplers import SAMPLERS

        for registry in (OPTIMIZERS, PROBLEMS, SAMPLERS):
            registry.names()


def _become(command: list[str], given: dict[str, Any]) -> None:
    """Go on as a fresh interpreter that was given this command. Does not return."""
    code = 1
    try:
        main = _prepare(command, given)
        try:
            code = _exit_code(main)
        finally:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - nothing may get back into the test
        traceback.print_exc()
    finally:
        os._exit(code)


def _exit_code(main: Callable[[], object]) -> int:
    try:
        wanted = main()
    except SystemExit as stop:
        wanted = stop.code
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return 130
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
        return 1
    if wanted is None:
        return 0
    if isinstance(wanted, int):
        return wanted
    print(wanted, file=sys.stderr)
    return 1


def _prepare(command: list[str], given: dict[str, Any]) -> Callable[[], object]:
    gc.freeze()
    if given["start_new_session"]:
        os.setsid()
    if given["preexec_fn"] is not None:
        given["preexec_fn"]()
    faulthandler.disable()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    atexit._clear()  # the parent's
    _set_streams(given)
    if given["env"] is not None:
        os.environ.clear()
        os.environ.update(given["env"])
    if given["cwd"] is not None:
        os.chdir(given["cwd"])
    added = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in _PYTHONPATH | {""}]
    sys.path[:] = [str(Path.cwd()), *added, *sys.path]
    sys.argv = [command[2], *command[3:]]
    _forget()
    if command[2] == "kftune":
        from kftune.cli import main

        def command_line() -> object:
            return main()

        return command_line
    from kftune.study.worker import main as work

    return work


def _set_streams(given: dict[str, Any]) -> None:
    # Out of the way of 0, 1 and 2 first: they may stand in each other's places.
    wanted = {0: given["p2cread"], 1: given["c2pwrite"], 2: given["errwrite"]}
    moved = {number: os.dup(source) for number, source in wanted.items() if source != -1}
    for number, source in moved.items():
        os.dup2(source, number, inheritable=True)
    kept = {0, 1, 2, *given["pass_fds"]}
    for number in sorted(int(name) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208 - numbers, no paths
        if number not in kept:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(number)
    for number in given["pass_fds"]:
        os.set_inheritable(number, True)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _text(1, "strict")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(2, "backslashreplace", line_buffering=True)  # type: ignore[misc]


def _text(number: int, errors: str, *, line_buffering: bool = False) -> io.TextIOWrapper:
    raw = open(number, "wb", closefd=False)  # noqa: SIM115 - lives as long as the process
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=line_buffering or raw.isatty())


def _forget() -> None:
    """What the test's process knows and a fresh one would not."""
    for name, module in list(sys.modules.items()):
        if name != "__main__" and _is_somebodys(module):
            del sys.modules[name]
    from kftune._registry import Registry

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "kftune":
            for value in list(vars(module).values()):
                if isinstance(value, Registry):
                    value._entries = None
                elif hasattr(value, "cache_clear"):
                    value.cache_clear()
    importlib.invalidate_caches()
    _forget_warnings()
    _forget_logging()
    import numpy as np
    import torch

    random.seed()
    np.random.seed(None)
    torch.random.default_generator.manual_seed(67280421310721)  # what it is in a fresh process
    torch.set_default_dtype(torch.float32)


def _is_somebodys(module: types.ModuleType) -> bool:
    """Whether a module is neither the interpreter's, nor installed, nor the repository's."""
    file = getattr(module, "__file__", None)
    return file is not None and not file.startswith(_ROOTS)


def _forget_warnings() -> None:
    spec = util.find_spec("warnings")
    assert spec is not None
    assert spec.loader is not None
    fresh = util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    for name in ("showwarning", "_showwarnmsg_impl", "_showwarning_orig", "formatwarning"):
        setattr(warnings, name, getattr(fresh, name))
    warnings.filters[:] = _FRESH_FILTERS  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]
    for option in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
        warnings._processoptions([option])  # type: ignore[attr-defined]


def _forget_logging() -> None:
    root = logging.getLogger()
    root.handlers.clear()
    for logger in [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]:
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.stream = sys.stderr
