"""Processes kept on some cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kftune.study.executors import Finished, LocalExecutor
from kftune.study.executors.affinity import cores_here, pin
from kftune.study.executors.ledger import Ledger
from tests.study.test_executor import spec, until_the_end

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processes that can be pinned")

THREADS = """
import sys, threading, time
def wait(): time.sleep(600)
for _ in range(3): threading.Thread(target=wait, daemon=True).start()
print(flush=True)
sys.stdin.readline()
threading.Thread(target=wait, daemon=True).start()
print(flush=True)
time.sleep(600)
"""


def masks(pid: int) -> list[set[int]]:
    return [os.sched_getaffinity(int(task)) for task in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - numbers


@pytest.fixture
def threaded() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", THREADS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_cores_are_those_of_the_affinity_mask() -> None:
    cores = cores_here()
    assert set().union(*(core.cpus for core in cores)) == os.sched_getaffinity(0)
    assert sum(len(core.cpus) for core in cores) == len(os.sched_getaffinity(0))
    assert len({core.key for core in cores}) == len(cores)


def test_every_thread_is_pinned_and_those_that_come_later(threaded: subprocess.Popen[str]) -> None:
    cpu = max(os.sched_getaffinity(0))
    pin(threaded.pid, {cpu})
    assert masks(threaded.pid) == [{cpu}] * 4
    assert threaded.stdin is not None
    assert threaded.stdout is not None
    threaded.stdin.write("\n")
    threaded.stdin.flush()
    threaded.stdout.readline()
    assert masks(threaded.pid) == [{cpu}] * 5
    pin(threaded.pid, os.sched_getaffinity(0))
    assert masks(threaded.pid) == [os.sched_getaffinity(0)] * 5


def test_a_process_that_is_gone_needs_no_pinning(threaded: subprocess.Popen[str]) -> None:
    threaded.kill()
    threaded.wait()
    pin(threaded.pid, {max(os.sched_getaffinity(0))})


def test_a_worker_is_kept_on_the_cores_of_its_run() -> None:
    here = os.sched_getaffinity(0)
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        executor.submit(0, spec("digits_mlp"), limit_seconds=None)
        ended, _ = until_the_end(executor)
        assert isinstance(ended, Finished)
        (worker,) = executor._workers.values()
        found = masks(worker.pid)
    assert len(found) > 1
    (core,) = (core for core in cores_here() if core.cpus == found[0])
    assert found == [set(core.cpus)] * len(found)
    assert os.sched_getaffinity(0) == here
