"""How a worker ends: what is stored of it, and what is left of it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from kftune.results import Outcome
from tests.chaos.studies import TARGET, is_complete, kftune, runs_of, write_fault, write_study
from tests.processes.warm import WarmPopen

ENDS = {
    "os._exit(7)": "the worker exited with code 7",
    "print('printed last', flush=True); os._exit(0)": "the worker exited with code 0",
    "threading.Thread(target=os._exit, args=(9,)).start(); time.sleep(60)": "the worker exited with code 9",
    "os.kill(os.getpid(), signal.SIGKILL)": "the worker was ended by SIGKILL",
    "os.abort()": "the worker was ended by SIGABRT",
    "ctypes.string_at(0)": "the worker was ended by SIGSEGV",
    "subprocess.Popen(['sleep', '600'], close_fds=False); os._exit(5)": "the worker exited with code 5",
    "os.fork() or time.sleep(600); os._exit(6)": "the worker exited with code 6",
    "sys.exit(3)": "SystemExit: 3",
    "sys.exit('enough')": "SystemExit: enough",
}
QUICK = ("sys.exit(3)", "subprocess.Popen(['sleep', '600'], close_fds=False); os._exit(5)")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfds and /proc")


@pytest.mark.parametrize("statement", QUICK)
def test_the_stored_error_says_how(tmp_path: Path, statement: str) -> None:
    write_study(tmp_path, problems=TARGET, trials=1)
    write_fault(tmp_path, statement)
    code, out, err = kftune(tmp_path, "run", "study.yaml")
    assert (code, err) == (0, ""), out + err
    (run,) = runs_of(tmp_path)
    assert run.result.outcome is Outcome.CRASHED
    assert run.result.message.splitlines()[-1] == ENDS[statement]
    assert f"a run crashed: {ENDS[statement]}" in out
    assert out.count("attempt") == (0 if "sys.exit" in statement else 2)
    assert run.attempt == (1 if "sys.exit" in statement else 3)


@pytest.mark.full
@pytest.mark.parametrize("statement", [statement for statement in ENDS if statement not in QUICK])
def test_the_stored_error_says_how_always(tmp_path: Path, statement: str) -> None:
    """As ``test_the_stored_error_says_how``."""
    test_the_stored_error_says_how(tmp_path, statement)


START = """
for command in (["sleep", "600"], [sys.executable, "-c", "import time; time.sleep(600)"]):
    started = subprocess.Popen(command, close_fds=False)
    with (HERE / "pids").open("a") as file:
        print(started.pid, file=file)
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
with (HERE / "pids").open("a") as file:
    print(child, file=file)
"""


AWAY = """
started = subprocess.Popen(["sleep", "600"], start_new_session=True)
with (HERE / "pids").open("a") as file:
    print(started.pid, file=file)
"""


def are_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 30
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@LINUX
@pytest.mark.parametrize("how", ["returns", "is killed with its runner"])
def test_what_it_has_started_ends_with_it(tmp_path: Path, how: str) -> None:
    ends = {
        "returns": "pass",
        "raises": "raise ValueError",
        "exits": "os._exit(1)",
        "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
        "is killed with its runner": "os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)",
    }
    write_study(tmp_path, problems=TARGET)
    away = AWAY if how in ("returns", "raises") else ""  # its worker lives, and can be asked for its children
    write_fault(tmp_path, f"if first_time():\n{indented(START + away + ends[how])}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kftune", "run", "study.yaml"]
    with WarmPopen(command, cwd=tmp_path, env=environment, text=True, stdout=-1, stderr=-1) as process:
        out, err = process.communicate(timeout=240)
    expected = -signal.SIGKILL if how == "is killed with its runner" else 0
    assert process.returncode == expected, out + err
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(pids) == (4 if away else 3)
    assert are_gone(pids)
    if expected == 0:
        assert is_complete(tmp_path)


@LINUX
@pytest.mark.full
@pytest.mark.parametrize("how", ["raises", "exits", "is killed"])
def test_what_it_has_started_ends_with_it_always(tmp_path: Path, how: str) -> None:
    """As ``test_what_it_has_started_ends_with_it``."""
    test_what_it_has_started_ends_with_it(tmp_path, how)


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())
