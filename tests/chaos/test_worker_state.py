"""What one run does to its process changes no other run: those of another problem give what they give alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from kftune.study.worker import end_session
from kftune.study.worker._state import changes, read_state
from tests.chaos.studies import TARGET, is_complete, kftune, runs_of, write_fault, write_study

MEMORY = "memory that it has kept"
CHANGES = {
    "torch's default dtype": "torch.set_default_dtype(torch.float64)",
    "torch's default device": "torch.set_default_device('meta')",
    "torch's deterministic algorithms": "torch.use_deterministic_algorithms(True)",
    "torch's number of threads": "torch.set_num_threads(2)",
    "autograd's mode": "torch.autograd.set_detect_anomaly(True)",
    "autocast": "torch.set_autocast_enabled('cpu', True)",
    "torch's matmul precision": "torch.set_float32_matmul_precision('medium')",
    "torch's backends": "torch.backends.cudnn.benchmark = True",
    "torch's global hooks": "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: o * 2)",
    "how subnormal numbers are treated": "torch.set_flush_denormal(True)",
    "NumPy's error handling": "np.seterr(all='raise')",
    "the working directory": "d = HERE / f'gone{os.getpid()}'; d.mkdir(); os.chdir(d); d.rmdir()",
    "the environment": "os.environ['KFTUNE_MEMORY_LIMIT'] = '1'",
    "signal handlers": "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "the standard streams": "os.close(1)",
    "the file mode mask": "os.umask(0o777)",
    "resource limits": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))",
    "priority or CPU affinity": "os.nice(5)",
    "child processes": "subprocess.Popen(['sleep', '600'])",
    "warnings that are errors": "warnings.simplefilter('error')",
    MEMORY: "sys.kept = torch.ones(300_000_000)",
    "settings of the interpreter": "sys.setrecursionlimit(900)",
}
MODULES = {
    "np": np,
    "os": os,
    "signal": signal,
    "subprocess": subprocess,
    "sys": sys,
    "torch": torch,
    "warnings": warnings,
}
UNTRIED = {"the locale"}  # there may be no other one on a machine


def losses(directory: Path, problem: str) -> list[list[float]]:
    return [
        [point.test_loss for point in run.result.curve]
        for run in sorted(runs_of(directory), key=lambda run: (run.trial, run.repeat))
        if run.study.split("/")[1] == problem
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    """Losses of the other problem in a study of its own."""
    from tests.processes.warm import warm

    directory = tmp_path_factory.mktemp("alone")
    write_study(directory)
    with warm():
        code, out, err = kftune(directory, "run", "study.yaml")
    assert code == 0, out + err
    return losses(directory, "digits_mlp")


def test_every_reading_is_tried() -> None:
    assert set(CHANGES) - {MEMORY} | UNTRIED == set(read_state())
    assert not [value for value in read_state().values() if isinstance(value, str) and "Error" in value]


@pytest.mark.parametrize("what", ["torch's default dtype", "the working directory"])
def test_other_runs_are_as_if_alone(tmp_path: Path, alone: list[list[float]], what: str) -> None:
    write_study(tmp_path, problems=f"{TARGET}, digits_mlp")
    write_fault(tmp_path, CHANGES[what])
    code, out, err = kftune(tmp_path, "run", "study.yaml")
    assert (code, err) == (0, ""), out + err
    assert is_complete(tmp_path, studies=2)
    assert losses(tmp_path, "digits_mlp") == alone
    (note,) = (line for line in out.splitlines() if "changed the process that it ran in" in line)
    assert note.startswith("note: chaos/faulty/sgd, trial 0, repeat 0: ")
    assert what in note.partition(" (")[2].partition(")")[0].split(", ")


@pytest.mark.full
@pytest.mark.parametrize("what", CHANGES)
def test_other_runs_are_as_if_alone_always(tmp_path: Path, alone: list[list[float]], what: str) -> None:
    """As ``test_other_runs_are_as_if_alone`` and ``test_a_change_is_seen``."""
    test_other_runs_are_as_if_alone(tmp_path, alone, what)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that can be spoilt")
@pytest.mark.parametrize("what", sorted(set(CHANGES) - {MEMORY}))
def test_a_change_is_seen(tmp_path: Path, what: str) -> None:
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            warnings.resetwarnings()
            before = read_state()
            exec(CHANGES[what], MODULES | {"HERE": tmp_path})
            os.write(there, "\n".join(changes(before)).encode())
        finally:
            os._exit(0)
    os.close(there)
    with os.fdopen(here) as pipe:
        seen = pipe.read().splitlines()
    os.waitpid(child, 0)
    end_session(child)
    assert what in seen


def test_random_numbers_are_those_of_a_fresh_process(tmp_path: Path) -> None:
    """A problem that draws its data with torch's own generator has the same in every run of a worker."""
    write_study(tmp_path, problems=TARGET, trials=1, repeats=3)
    write_fault(tmp_path, "random.seed(0); np.random.seed(0); torch.manual_seed(random.randrange(99))")
    module = tmp_path / "faulty.py"
    kept = (
        "    with (HERE / 'drawn').open('a') as file:\n        print(os.getpid(), torch.rand(()).item(), file=file)\n"
    )
    module.write_text(module.read_text().replace("    return replace(", f"{kept}    return replace("))
    code, out, err = kftune(tmp_path, "run", "study.yaml")
    assert (code, err) == (0, ""), out + err
    assert "changed the process" not in out
    assert is_complete(tmp_path, trials=1, repeats=3)
    draws: dict[str, list[str]] = {}
    for line in (tmp_path / "drawn").read_text().splitlines():
        process, number = line.split()
        draws.setdefault(process, []).append(number)
    (of_worker,) = (numbers for numbers in draws.values() if len(numbers) == 3)
    assert len(set(of_worker)) == 1
