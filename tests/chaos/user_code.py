"""What code of a user's may do in the middle of a run, each beside a second problem that must not feel it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from kftune.results import Outcome
from tests.chaos.studies import TARGET, is_complete, kftune, runs_of, write_fault, write_study

MISDEEDS = {
    "segfaults": "ctypes.string_at(0)",
    "aborts": "os.abort()",
    "exits": "os._exit(3)",
    "exits through Python": "sys.exit(3)",
    "exits from a thread": "threading.Thread(target=os._exit, args=(3,)).start(); time.sleep(60)",
    "is interrupted": "signal.raise_signal(signal.SIGINT)",
    "hangs in Python, deaf to SIGTERM": "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    "hangs in C, holding Python's lock": "ctypes.PyDLL(None).sleep(600)",
    "forks and goes on": "os.fork() or time.sleep(600)",
    "forks, and the child goes on as the run": "os.fork() and os._exit(0)",
    "forks a hundred times": "[os.fork() or time.sleep(600) for _ in range(100)]",
    "starts a daemon": "subprocess.Popen(['sleep', '600'], start_new_session=True)",
    "prints 100 MB": "for _ in range(1600):\n    os.write(1, b'x' * 65535 + b'\\n')",
    "closes file descriptors": "os.closerange(0, 1000)",
    "closes the standard streams": "os.closerange(0, 3); print('x' * 10000)",
    "removes its working directory": "d = HERE / f'd{os.getpid()}'; d.mkdir(); os.chdir(d); d.rmdir()",
    "sets the default dtype": "torch.set_default_dtype(torch.float64)",
    "sets signal handlers": "for n in (1, 2, 15, 17):\n    signal.signal(n, lambda *_: None)",
    "sets seeds": "random.seed(0); np.random.seed(0); torch.manual_seed(0)",
    "leaks 300 MB in each run": "sys.leak = [*getattr(sys, 'leak', []), bytearray(os.urandom(1 << 20) * 300)]",
    "leaks file descriptors": "for _ in range(500):\n    os.open('/dev/null', os.O_RDONLY)",
    "leaves threads": "for _ in range(50):\n    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "leaves a thread that must be waited for": "threading.Thread(target=time.sleep, args=(600,)).start()",
    "raises what cannot be pickled": "raise type('Local', (Exception,), {'x': lambda: 0})(threading.Lock())",
    "raises 20 MB": "raise ValueError('x' * 20_000_000)",
    "raises a lone surrogate": "raise ValueError('\\udcff')",
    "recurses": "f = lambda: f()\nf()",
    "needs more memory than there is": "torch.empty(1 << 50)",
}
FAILS = {Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY}
_STUDIES = {"trials": 2, "repeats": 1}
_RUN_TIMEOUT = "run_timeout=8"


@dataclass
class Misdeeds:
    """How many were done, and the faults: one line each."""

    done: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def other_losses(directory: Path) -> list[tuple[float, ...]]:
    runs = [run for run in runs_of(directory) if run.study.split("/")[1] == "digits_mlp"]
    return [tuple(p.test_loss for p in run.result.curve) for run in sorted(runs, key=lambda run: run.trial)]


def left_over(directory: Path) -> list[str]:
    """Processes that still work in a directory a while after its study has ended."""
    deadline = time.monotonic() + 10
    while True:
        found = [str(process) for process in psutil.process_iter() if works_in(process, directory)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def works_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return Path(process.cwd()) == directory
    except psutil.Error:
        return False


def misdeeds(directory: Path, names: list[str]) -> Misdeeds:
    """Do some of :data:`MISDEEDS`; the study comes to its end, and the other problem's losses are as if alone."""
    found = Misdeeds()
    alone = directory / "alone"
    alone.mkdir(parents=True)
    write_study(alone, **_STUDIES)
    kftune(alone, "run", "study.yaml")
    expected = other_losses(alone)
    for number, name in enumerate(names):
        place = directory / f"misdeed{number}"
        place.mkdir()
        write_study(place, problems=f"{TARGET}, digits_mlp", **_STUDIES)
        write_fault(place, MISDEEDS[name])
        hangs = ("--set", _RUN_TIMEOUT) if "hangs" in name or "child goes on" in name else ()
        code, out, err = kftune(place, "run", "study.yaml", *hangs)
        found.done.append(name)
        if code != 0 or err or "Traceback" in out:
            found.faults.append(f"{name}: exit code {code}: {(out + err)[-300:]}")
        elif not is_complete(place, **_STUDIES, studies=2):
            found.faults.append(f"{name}: not every run is stored once")
        elif other_losses(place) != expected:
            found.faults.append(f"{name}: the other problem's losses are not what they are alone")
        found.faults += [f"{name}: left {process}" for process in left_over(place)]
    return found
