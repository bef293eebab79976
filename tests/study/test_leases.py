"""Leases of cores and GPUs, between real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kftune.errors import UsageError
from kftune.study.executors import Finished, LocalExecutor, Started, leases
from kftune.study.executors.affinity import Core, cores_here
from kftune.study.executors.leases import Leases, Request, lease_directory, leased
from kftune.study.executors.ledger import Ledger
from kftune.study.executors.protocol import Holder
from tests.study.test_executor import spec, until_the_end

TAKER = """
import os, sys, time
from kftune.study.executors.affinity import Core, cores_here
from kftune.study.executors.leases import Leases

log, name, n_cores, threads, n_runs, seconds = sys.argv[1:]
cores = [Core(f"core-0-{i}", frozenset({i})) for i in range(int(n_cores))]
leases = Leases(["cpu"], threads=int(threads), name=name, cores=cores)
out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for _ in range(int(n_runs)):
    request = leases.request("cpu")
    while not request.is_granted():
        time.sleep(0.002)
    cpus = ",".join(map(str, sorted(request.cpus)))
    os.write(out, f"{name} takes {cpus}\\n".encode())
    time.sleep(float(seconds))
    os.write(out, f"{name} leaves {cpus}\\n".encode())
    request.release()
"""

Take = Callable[..., "subprocess.Popen[bytes]"]


def cores(n: int, cpus_each: int = 1) -> list[Core]:
    return [Core(f"core-0-{i}", frozenset(range(i * cpus_each, (i + 1) * cpus_each))) for i in range(n)]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFTUNE_LEASE_DIR", str(tmp_path / "leases"))


@pytest.fixture
def take(tmp_path: Path) -> Iterator[Take]:
    """Starts processes that take cores again and again."""
    processes = []

    def start(
        name: str, *, n_cores: int = 1, threads: int = 1, n_runs: int = 1, seconds: float = 600
    ) -> subprocess.Popen[bytes]:
        arguments = [str(tmp_path / "log"), name, *map(str, (n_cores, threads, n_runs, seconds))]
        processes.append(subprocess.Popen([sys.executable, "-c", TAKER, *arguments]))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def log(directory: Path) -> list[tuple[str, str, set[str]]]:
    path = directory / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(name, action, set(cpus.split(","))) for name, action, cpus in map(str.split, lines)]


def test_two_processes_alternate_on_one_core(tmp_path: Path, take: Take) -> None:
    processes = [take(name, n_runs=8, seconds=0.1) for name in "ab"]
    assert [process.wait(60) for process in processes] == [0, 0]
    found = log(tmp_path)
    takes = "".join(name for name, action, _ in found if action == "takes")
    assert takes.count("a") == takes.count("b") == 8
    assert [(name, action) for name, action, _ in found] == [
        (name, action) for name in takes for action in ("takes", "leaves")
    ]  # one at a time
    # From when both are there until one has done: whoever leaves wants it again at once, and has to wait.
    both = takes[max(takes.index("a"), takes.index("b")) : min(takes.rindex("a"), takes.rindex("b"))]
    assert len(both) >= 4
    assert "aa" not in both
    assert "bb" not in both


def test_many_processes_that_want_different_numbers_never_overlap(tmp_path: Path, take: Take) -> None:
    processes = [take(f"p{i}", n_cores=3, threads=1 + i % 3, n_runs=15, seconds=0.001 * i) for i in range(6)]
    assert [process.wait(120) for process in processes] == [0] * 6
    used: dict[str, set[str]] = {}
    most = 0
    for name, action, cpus in log(tmp_path):
        if action == "takes":
            assert len(cpus) == 1 + int(name[1:]) % 3
            assert not cpus & set().union(*used.values())
            used[name] = cpus
            most = max(most, len(used))
        else:
            assert used.pop(name) == cpus
    assert len(log(tmp_path)) == 2 * 6 * 15
    assert most > 1  # they do run side by side where they fit


def test_a_killed_holder_frees_its_core_at_once(tmp_path: Path, take: Take) -> None:
    holder = take("holder")
    wait_for(lambda: log(tmp_path))
    request = Leases(["cpu"], threads=1, cores=cores(1)).request("cpu")
    assert not request.is_granted()
    (found,) = request.holders()
    assert (found.pid, found.name) == (holder.pid, "holder")
    assert str(found) == f"process {holder.pid} (holder)"
    holder.kill()
    holder.wait()
    assert request.is_granted()
    assert request.holders() == ()
    request.release()


def test_a_killed_waiter_leaves_no_closed_turnstile(tmp_path: Path, take: Take) -> None:
    mine = Leases(["cpu"], threads=1, cores=cores(1))
    request = mine.request("cpu")
    assert request.is_granted()
    waiter = take("waiter")
    lock = tmp_path / "leases" / "cores.turnstile.holder"
    wait_for(lambda: str(waiter.pid) in lock.read_text())
    request.release()
    # It may take the core now, but is killed first or last: neither stands in the way.
    waiter.kill()
    waiter.wait()
    again = mine.request("cpu")
    assert again.is_granted()
    again.release()


def test_all_cores_or_none() -> None:
    one, two = (Leases(["cpu"], threads=n, cores=cores(2)) for n in (1, 2))
    first = one.request("cpu")
    assert first.is_granted()
    both = two.request("cpu")
    assert not both.is_granted()
    # The free core is not kept while the other is waited for; but who waits is next.
    assert len(one.take("cpu") or {}) == 1
    one.give_back(["core-0-1"])
    other = one.request("cpu")
    assert not other.is_granted()
    first.release()
    assert both.is_granted()
    assert both.cpus == {0, 1}
    assert not other.is_granted()
    both.release()
    assert other.is_granted()
    other.release()


def test_a_wish_that_is_withdrawn_leaves_the_way_free() -> None:
    mine, theirs = (Leases(["cpu"], threads=1, cores=cores(1)) for _ in range(2))
    first, second = mine.request("cpu"), theirs.request("cpu")
    assert first.is_granted()
    assert not second.is_granted()
    second.release()
    first.release()
    third = mine.request("cpu")
    assert third.is_granted()
    third.release()


@pytest.mark.parametrize(
    ("n_slots", "threads", "n_cores", "cpus_each", "expected", "notice"),
    [
        (1, 1, 4, 1, [1], None),
        (2, 2, 4, 1, [2, 2], None),
        (1, 8, 4, 1, [4], "8 threads share 4 CPU cores"),
        (2, 2, 2, 1, [2, 2], "2 workers with 2 threads each share 2 CPU cores"),
        (3, 1, 2, 1, [1, 1, 1], "3 workers with 1 thread each share 2 CPU cores"),
        (1, 8, 4, 2, [8], None),
        (2, 4, 4, 2, [4, 4], None),
        (1, 2, 4, 2, [4], None),
    ],
)
def test_slots_of_one_process_share_what_there_is(
    n_slots: int, threads: int, n_cores: int, cpus_each: int, expected: list[int], notice: str | None
) -> None:
    mine = Leases(["cpu"] * n_slots, threads=threads, cores=cores(n_cores, cpus_each))
    requests = [mine.request("cpu") for _ in range(n_slots)]
    assert all(request.is_granted() for request in requests)
    assert [len(request.cpus) for request in requests] == expected
    users = [sum(cpu in request.cpus for request in requests) for cpu in range(n_cores * cpus_each)]
    assert max(users) - min(users) <= 1  # spread evenly
    found = mine.notice()
    assert found == notice
    others = Leases(["cpu"], threads=1, cores=cores(n_cores, cpus_each)).request("cpu")
    assert others.is_granted() == (0 in users)
    for request in (*requests, others):
        request.release()


def test_shared_slots_let_others_in(tmp_path: Path, take: Take) -> None:
    """Two slots on one core, always one of them in a run: another process still gets its turn."""
    mine = Leases(["cpu"] * 2, threads=1, cores=cores(1))
    running = [mine.request("cpu")]
    assert running[0].is_granted()
    take("other", seconds=0)
    waited: list[Request] = []

    def other_had_its_turn() -> bool:
        waited[:] = waited or [mine.request("cpu")]
        if waited[0].is_granted():
            running.append(waited.pop())
        if len(running) == 2 or waited:  # a run ends, when the next has begun or cannot
            for request in running[: 1 if len(running) == 2 else None]:
                request.release()
                running.remove(request)
        return bool(log(tmp_path))

    wait_for(other_had_its_turn)
    for request in (*running, *waited):
        request.release()


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_gpu_key", lambda device: f"gpu-of-{device}")


@pytest.mark.usefixtures("fake_gpus")
def test_gpus_are_exclusive_unless_named_twice() -> None:
    mine, theirs = Leases(["cuda:0", "cuda:0", "cuda:1"], threads=64), Leases(["cuda:0", "cuda:1"], threads=64)
    first, second, theirs_0, theirs_1 = (
        mine.request("cuda:0"), mine.request("cuda:0"), theirs.request("cuda:0"), theirs.request("cuda:1")
    )  # fmt: skip
    assert first.is_granted()
    assert second.is_granted()
    assert theirs_1.is_granted()
    assert not theirs_0.is_granted()
    assert [holder.pid for holder in theirs_0.holders()] == [os.getpid()]
    assert first.cpus == frozenset()  # no core is leased for a GPU
    first.release()
    assert not theirs_0.is_granted()
    again = mine.request("cuda:0")
    assert not again.is_granted()  # somebody waits
    second.release()
    assert theirs_0.is_granted()
    assert not again.is_granted()
    theirs_0.release()
    assert again.is_granted()
    assert mine.notice() is None
    for request in (again, theirs_1):
        request.release()


def test_a_directory_that_is_somebody_elses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFTUNE_LEASE_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = lease_directory()
    assert path.parent == tmp_path
    assert path.stat().st_mode & 0o777 == 0o700
    assert lease_directory() == path
    path.rmdir()
    path.symlink_to("/")
    with pytest.raises(UsageError, match=r"kftune-leases-\d+ is not a directory of yours; set KFTUNE_LEASE_DIR"):
        lease_directory()
    (tmp_path / "file").touch()
    monkeypatch.setenv("KFTUNE_LEASE_DIR", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"KFTUNE_LEASE_DIR: .*file: File exists"):
        lease_directory()


def test_an_executor_waits_for_its_core_and_says_for_whom(tmp_path: Path, take: Take) -> None:
    n = len(os.sched_getaffinity(0))
    holder = Leases(["cpu"], threads=n, name="other study")
    theirs = holder.request("cpu")
    assert theirs.is_granted()
    ledger = Ledger(n_slots=1)
    with LocalExecutor(["cpu"], threads=1, ledger=ledger, name="mine") as executor:
        executor.submit(0, spec("digits_mlp"), limit_seconds=0.3)
        assert executor.idle_slots() == []
        started = time.monotonic()
        while time.monotonic() < started + 1:
            assert executor.poll(0.1) == []
        (waiting,) = executor.waiting()
        assert str(waiting) == f"waiting for CPU cores, used by process {os.getpid()} (other study)"
        assert executor.withdraw() == [0]
        assert executor.idle_slots() == [0]
        assert ledger.to_dict()["worker_start"] == 0
        executor.submit(0, spec("digits_mlp"), limit_seconds=None)
        executor.poll(0.2)
        theirs.release()
        ended, before = until_the_end(executor)
        assert isinstance(before[0], Started)
        assert before[0].waited_seconds >= 0.2
        assert isinstance(ended, Finished)
        assert executor.waiting() == []
        assert ledger.to_dict()["waiting"] == pytest.approx(before[0].waited_seconds)
        notes = [json.loads(path.read_text() or "null") for path in (tmp_path / "leases").glob("core-*.holder")]
        assert notes == [None] * n  # nothing is held between runs


def test_a_block_has_cores_to_itself_and_says_for_whom_it_waits() -> None:
    mine, all_cores = os.sched_getaffinity(0), cores_here()
    n = len(all_cores)
    theirs = Leases(["cpu"], threads=n, name="a study").request("cpu")
    assert theirs.is_granted()
    waited_for: list[str] = []

    def on_wait(holders: Sequence[Holder]) -> None:
        waited_for.extend(map(str, holders))
        theirs.release()

    with leased("cpu", threads=1, name="a profile", on_wait=on_wait):
        kept_on = os.sched_getaffinity(0)
        assert kept_on < mine or n == 1
        everything = Leases(["cpu"], threads=n, name="another", cores=all_cores).request("cpu")
        assert not everything.is_granted()
        assert [holder.name for holder in everything.holders()] == ["a profile"]
        everything.release()
    assert waited_for == [f"process {os.getpid()} (a study)"]
    assert os.sched_getaffinity(0) == mine
