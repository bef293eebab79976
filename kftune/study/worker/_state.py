"""What a run may leave changed in its process, and what later runs, of other problems too, would then compute with.

Putting a setting back would not do: a module of the user's that sets something when it is imported is imported once.
So a worker whose state has changed is to be ended, and every run begins in the state of a fresh process.
"""

from __future__ import annotations

import gc
import importlib
import locale
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import torch

_LEAK_BYTES = 1 << 30
_STREAMS = (0, 1, 2)
_TINY = 2.0**-1070  # a subnormal number
_HOOKED = ("torch.nn.modules.module", "torch.optim.optimizer")
_PRECISIONS = (
    "backends.fp32_precision",
    "backends.cuda.matmul.fp32_precision",
    "backends.cudnn.conv.fp32_precision",
    "backends.cudnn.rnn.fp32_precision",
)
_SWITCHES = (
    "backends.cudnn.enabled",
    "backends.cudnn.benchmark",
    "backends.cudnn.deterministic",
    "backends.mkldnn.enabled",
    "backends.mkldnn.deterministic",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
)


def read_state() -> dict[str, object]:
    """The process' state by what it is called; what cannot be read is the error that says so."""
    return {name: _read(reading) for name, reading in _READINGS.items()}


def changes(before: Mapping[str, object]) -> tuple[str, ...]:
    """What is not as :func:`read_state` found it."""
    now = read_state()
    return tuple(name for name, value in before.items() if now[name] != value)


def resident_bytes() -> int:
    """Memory that the process uses."""
    return int(psutil.Process().memory_info().rss)


def leaks(before: int) -> tuple[str, ...]:
    """Whether much more memory is used than :func:`resident_bytes` said: later runs might lack it."""
    return ("memory that it has kept",) if resident_bytes() - before > _LEAK_BYTES else ()


def fresh_random_states() -> None:
    """Random numbers as a process that has just been started draws them."""
    random.seed()
    np.random.seed(None)
    torch.default_generator.manual_seed(_TORCH_SEED)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no annotation here
        torch.cuda.manual_seed_all(_TORCH_SEED)


_TORCH_SEED = 67280421310721  # torch's own, of a generator that nobody has seeded


def _read(reading: Callable[[], object]) -> object:
    try:
        return reading()
    except Exception as error:  # noqa: BLE001 - whatever it is, it was not so before, or will be so again
        return repr(error)


def _working_directory() -> object:
    status = Path().stat()
    return Path.cwd(), status.st_dev, status.st_ino


def _environment() -> object:
    # Libraries tell the OpenMP runtime of themselves when they are imported: it was loaded long before.
    return {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}


def _signals() -> object:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    timers = [name for name in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF") if _is_set(name)]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if hasattr(signal, "pthread_sigmask") else set()
    return handlers, timers, blocked


def _is_set(timer: str) -> bool:
    return hasattr(signal, "getitimer") and signal.getitimer(getattr(signal, timer))[0] > 0


def _streams() -> object:
    statuses = [os.fstat(number) for number in _STREAMS]
    return [(status.st_dev, status.st_ino) for status in statuses]


def _umask() -> object:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _limits() -> object:
    import resource  # not on every system

    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {name: resource.getrlimit(getattr(resource, name)) for name in names}


def _share_of_the_machine() -> object:
    return os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0)


def _children() -> object:
    return {child.pid for child in psutil.Process().children()}


def _warnings_that_raise() -> object:
    return [entry for entry in warnings.filters if entry[0] == "error"]


def _interpreter() -> object:
    return sys.getrecursionlimit(), sys.gettrace(), sys.getprofile(), gc.isenabled(), gc.get_threshold()


def _autograd() -> object:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()


def _autocast() -> object:
    return [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]


def _determinism() -> object:
    return torch.get_deterministic_debug_mode(), _setting("utils.deterministic.fill_uninitialized_memory")


def _threads() -> object:
    return torch.get_num_threads(), torch.get_num_interop_threads()


def _precision() -> object:
    kinds = [_read(lambda name=name: _setting(name)) for name in _PRECISIONS]  # type: ignore[misc]
    return _read(torch.get_float32_matmul_precision), kinds


def _backends() -> object:
    return [_read(lambda name=name: _setting(name)) for name in _SWITCHES]  # type: ignore[misc]


def _setting(path: str) -> Any:
    found: Any = torch
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _hooks() -> object:
    modules: list[ModuleType] = [importlib.import_module(name) for name in _HOOKED]
    registries = [(name, value) for module in modules for name, value in vars(module).items() if "_global_" in name]
    return {name: list(value.values()) if isinstance(value, dict) else value for name, value in registries}


_READINGS: dict[str, Callable[[], object]] = {
    "torch's default dtype": torch.get_default_dtype,
    "torch's default device": torch.get_default_device,
    "torch's deterministic algorithms": _determinism,
    "torch's number of threads": _threads,
    "autograd's mode": _autograd,
    "autocast": _autocast,
    "torch's matmul precision": _precision,
    "torch's backends": _backends,
    "torch's global hooks": _hooks,
    "how subnormal numbers are treated": lambda: _TINY * 1.0 > 0.0,
    "NumPy's error handling": np.geterr,
    "the working directory": _working_directory,
    "the environment": _environment,
    "signal handlers": _signals,
    "the standard streams": _streams,
    "the file mode mask": _umask,
    "resource limits": _limits,
    "priority or CPU affinity": _share_of_the_machine,
    "child processes": _children,
    "warnings that are errors": _warnings_that_raise,
    "the locale": lambda: locale.setlocale(locale.LC_ALL),
    "settings of the interpreter": _interpreter,
}
