"""Kill cycles: a study is disturbed at random moments until it is complete, then compared with one that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.studies import integrity, runs_of, write_study
from tests.processes.database import count_runs
from tests.processes.warm import WarmPopen

SIGNALS = ("TERM", "INT", "STOP", "KILL")  # what is stopped is continued a moment later
TARGETS = ("runner", "worker", "group")
PROBLEM_RUNS = {"trials": 4, "repeats": 2, "updates": 60}
_MOST_LOSSES = 2  # of workers in a session: a run that is lost three times is stored as crashed, as it should be
_PATIENCE_SECONDS = 180

Run = tuple[str, int, int, int, str, tuple[float, ...]]


@dataclass
class Kills:
    """What was done, and what was found.

    Attributes:
        cycles: by what was hit and by which signal.
        studies: that were completed and compared.
        faults: one line each; there should be none.
    """

    cycles: Counter[tuple[str, str]] = field(default_factory=Counter)
    studies: int = 0
    faults: list[str] = field(default_factory=list)


def contents(directory: Path) -> set[Run]:
    """What must not depend on disturbances: configurations, seeds, outcomes, and losses to the bit."""
    found = set()
    for run in runs_of(directory):
        params, losses = repr(sorted(run.params.items())), tuple(point.test_loss for point in run.result.curve)
        found.add((run.study, run.trial, run.repeat, run.seed, f"{run.result.outcome} {params}", losses))
    return found


def start(directory: Path, *options: str) -> subprocess.Popen[bytes]:
    """The runner, in a process group of its own, its output in a file."""
    with (directory / "output").open("ab") as output:
        return WarmPopen(
            [sys.executable, "-m", "kftune", "run", "study.yaml", *options],
            cwd=directory,
            stdout=output,
            stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            start_new_session=True,
        )


class Disturbed:
    """One study that is run again and again under signals.

    Args:
        directory: of its own; emptied for every study.
        sampler: of the study.
        options: of the command.
        rng: decides when and what.
        kills: is told.
    """

    def __init__(
        self, directory: Path, *, sampler: str, options: tuple[str, ...], rng: random.Random, kills: Kills
    ) -> None:
        self.directory, self.rng, self.kills = directory, rng, kills
        self.options = (*options, "--set", f"sampler={sampler}")
        self.name = f"{sampler} {' '.join(options)}".strip()
        for _ in range(2):  # what is imported for the first one is there for all others
            whole = self.fresh("whole")
            began = time.monotonic()
            process = start(whole, *self.options)
            if process.wait(_PATIENCE_SECONDS) != 0:
                raise RuntimeError((whole / "output").read_text())
            self.seconds = time.monotonic() - began
        self.reference = contents(whole)
        self.place = self.fresh("disturbed")
        self.process: subprocess.Popen[bytes] | None = None
        self.workers: set[psutil.Process] = set()
        self.losses = 0
        self.before: set[Run] = set()

    def fresh(self, name: str) -> Path:
        place = self.directory / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        write_study(place, problems="digits_mlp", **PROBLEM_RUNS)
        return place

    def fault(self, what: str) -> None:
        self.kills.faults.append(f"{self.name}: {what}")

    def cycle(self, target: str, number: str) -> None:
        """Hit something, in the runner that goes on or in a new one."""
        at_most = 0.3  # of the time that the study takes
        if self.process is None:
            self.process, self.losses = start(self.place, *self.options), 0
            at_most = 0.8
        time.sleep(self.rng.uniform(0.0, at_most) * self.seconds)
        self.remember_workers()
        if self.process.poll() is None:
            self.hit(target, number)
            self.kills.cycles[target, number] += 1
        if self.process.poll() is not None:
            self.ended()

    def remember_workers(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.workers |= set(psutil.Process(self.process.pid).children(recursive=True))

    def hit(self, target: str, number: str) -> None:
        process = self.process
        assert process is not None
        workers = [worker for worker in self.workers if worker.is_running()]
        if target == "worker" and number != "STOP" and self.losses >= _MOST_LOSSES:
            target = "group"  # another loss might be a run's third
        hit = [process.pid] if target == "runner" else [worker.pid for worker in workers[:1]]
        hit = [process.pid, *(worker.pid for worker in workers)] if target == "group" else hit
        for pid in hit:
            send(pid, getattr(signal, f"SIG{number}"))
        if number == "STOP":
            time.sleep(self.rng.uniform(0.05, 0.5))
            for pid in hit:
                send(pid, signal.SIGCONT)
        elif target == "worker":
            self.losses += 1
        else:
            if number != "KILL" and self.rng.random() < 0.3:
                time.sleep(self.rng.uniform(0.0, 0.2))
                send(process.pid, signal.SIGINT)  # the second one stops at once
            self.wait()

    def wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.process.poll() is None:
            self.remember_workers()
            if time.monotonic() > deadline:
                self.fault(f"still running {_PATIENCE_SECONDS} s after a signal")
                self.process.kill()
            time.sleep(0.02)

    def ended(self) -> None:
        """The runner has ended: nothing may be left of it, lost, or made twice."""
        assert self.process is not None
        code, self.process = self.process.returncode, None
        _, alive = psutil.wait_procs(list(self.workers), timeout=30)
        self.workers.clear()
        if [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE]:
            self.fault("a worker outlived its runner")
        output = (self.place / "output").read_text(errors="replace")
        (self.place / "output").unlink()
        # Before there are handlers, and in what makes a forked process a fresh one, Python shows where it was.
        is_early = code in (1, 130, -signal.SIGINT) and "KeyboardInterrupt" in output
        if "Traceback" in output and not is_early:
            self.fault("a traceback: " + output[output.index("Traceback") :][-1000:])
        if code not in (0, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT) and not is_early:
            self.fault(f"exit code {code}: {output[-1000:]}")
        if count_runs(self.place / "chaos.db") == 0:
            return
        if not integrity(self.place):
            self.fault("the database is not whole")
        now = contents(self.place)
        if not self.before <= now:
            self.fault("a stored run is gone or changed")
        if len(runs_of(self.place)) != len({run[:3] for run in now}):
            self.fault("a run is stored twice")
        self.before = now
        if code == 0:
            self.compare()

    def compare(self) -> None:
        if self.before != self.reference:
            difference = sorted(self.before ^ self.reference)[0]
            self.fault(f"differs from the study that was not disturbed, first in {difference}")
        self.kills.studies += 1
        self.before = set()
        self.place = self.fresh("disturbed")

    def finish(self) -> None:
        """Bring the study to its end and compare it."""
        for _ in range(5):
            if self.process is None:
                if not self.before and self.kills.studies:
                    return
                self.process, self.losses = start(self.place, *self.options), 0
            studies = self.kills.studies
            self.wait()
            self.ended()
            if self.kills.studies > studies:
                return
        self.fault("does not come to its end")


def send(pid: int, number: int) -> None:
    """A signal, to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (("tpe", ()), ("random", ("--workers", "2")), ("qmc", ()))


def kill_cycles(directory: Path, *, cycles: int, seed: int = 0) -> Kills:
    """So many cycles, in equal parts of every target, signal and kind of study."""
    rng = random.Random(seed)
    kills = Kills()
    kinds = KINDS[: max(1, min(len(KINDS), cycles // 12))]
    studies = [
        Disturbed(directory / sampler, sampler=sampler, options=options, rng=rng, kills=kills)
        for sampler, options in kinds
    ]
    plan = [(target, number) for target in TARGETS for number in SIGNALS]
    at = 0
    while kills.cycles.total() < cycles and len(kills.faults) < 20:
        # One kind at a time: its process may go on from one cycle to the next.
        study = studies[at * len(studies) // max(1, cycles) % len(studies)]
        study.cycle(*plan[at % len(plan)] if rng.random() < 0.5 else rng.choice(plan))
        at = kills.cycles.total()
    for study in studies:
        study.finish()
    return kills


__all__ = ["KINDS", "Kills", "contents", "kill_cycles", "start"]
