"""Databases in bad places: two runners at once, a disk that fills, a database that may not be written."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.kills import contents, start
from tests.chaos.studies import kftune, write_study
from tests.processes.database import count_runs
from tests.processes.warm import WarmPopen

_SHAPE = {"problems": "digits_mlp", "trials": 12, "repeats": 1}


@dataclass
class Places:
    """How often each was tried, and the faults: one line each."""

    tried: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, what: str, faults: list[str]) -> None:
        self.tried[what] = self.tried.get(what, 0) + 1
        self.faults += [f"{what}: {fault}" for fault in faults]


def attempt(place: Path, before: Callable[[], None] | None = None) -> tuple[int, str, str]:
    """The study's command, with something done first in its process."""
    command = [sys.executable, "-m", "kftune", "run", "study.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with WarmPopen(command, cwd=place, env=environment, preexec_fn=before, text=True, stdout=-1, stderr=-1) as process:
        out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def new_place(directory: Path, **changes: int) -> Path:
    directory.mkdir(parents=True)
    write_study(directory, **(_SHAPE | changes))  # type: ignore[arg-type]  # a harness' shorthand
    return directory


def one_line(code: int, err: str, word: str) -> list[str]:
    lines = err.strip().splitlines()
    return [] if code == 2 and len(lines) == 1 and word in err else [f"exit code {code}: {err[-300:]}"]


def full_disk(directory: Path, n_bytes: int, reference: set[object]) -> list[str]:
    """No file can grow beyond a size; afterwards there is room again."""
    place = new_place(directory)
    code, _, err = attempt(place, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes)))
    faults = [] if code == 0 else one_line(code, err, "chaos.db")
    return faults + _goes_on(place, reference)


def small_disk(directory: Path, n_bytes: int, reference: set[object]) -> list[str] | None:
    """A file system of its own, in memory, that is full after some runs; None where it cannot be mounted."""
    place = directory
    place.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        return None
    try:
        write_study(place, **_SHAPE)  # type: ignore[arg-type]  # a harness' shorthand
        code, _, err = attempt(place)
        faults = [] if code == 0 else one_line(code, err, "chaos.db")
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        return faults + _goes_on(place, reference)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _goes_on(place: Path, reference: set[object]) -> list[str]:
    before = contents(place) if count_runs(place / "chaos.db") else set()
    code, out, err = attempt(place)
    if (code, err) != (0, ""):
        return [f"does not go on: exit code {code}: {(out + err)[-300:]}"]
    now = contents(place)
    lost = [] if before <= now else ["a stored run is gone"]
    return lost + ([] if now == reference else ["differs from the study that had room"])


def obey_modes() -> None:
    """Root gives up to write what its modes forbid (CAP_DAC_OVERRIDE, of <linux/capability.h>)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) == 0:
        data[0] &= ~0b110  # effective; with CAP_DAC_READ_SEARCH
        data[1] &= ~0b110
        libc.capset(header, data)


def read_only(directory: Path, rng: random.Random) -> list[str]:
    """The file, its directory, or both may not be written; nothing is, and the command says so in a line."""
    place = new_place(directory, trials=1)
    code, _, err = kftune(place, "run", "study.yaml")
    faults = [] if code == 0 else [f"exit code {code}: {err}"]
    write_study(place, problems="digits_mlp", trials=2)
    kind = rng.choice(("file", "directory", "both"))
    database = place / "chaos.db"
    before = database.read_bytes()
    database.chmod(0o644 if kind == "directory" else 0o444)
    place.chmod(0o755 if kind == "file" else 0o555)
    code, _, err = attempt(place, obey_modes)
    place.chmod(0o755)
    faults += one_line(code, err, "chaos.db")
    if database.read_bytes() != before:
        faults.append("the database was changed")
    return faults


def two_runners(directory: Path, rng: random.Random, reference: set[object]) -> list[str]:
    """Both are started at nearly the same time: one does the work, the other says who does."""
    place = new_place(directory)
    first = start(place)
    time.sleep(rng.uniform(0.0, 0.6))
    second = start(place)
    codes = sorted((first.wait(240), second.wait(240)))
    output = (place / "output").read_text()
    faults = [] if codes in ([0, 2], [0, 0]) else [f"exit codes {codes}: {output[-300:]}"]
    if codes == [0, 2] and "another kftune" not in output:
        faults.append(output[-300:])
    return faults + ([] if contents(place) == reference else ["differs from what one runner makes"])


def bad_places(directory: Path, *, rounds: int, seed: int = 0) -> Places:
    """Each of them so many times."""
    rng = random.Random(seed)
    found = Places()
    whole = new_place(directory / "whole")
    kftune(whole, "run", "study.yaml")
    reference: set[object] = set(contents(whole))
    for number in range(rounds):
        n_bytes = rng.randrange(4_000, 900_000)
        found.add("a limit on the size of files", full_disk(directory / f"limit{number}", n_bytes, reference))
        n_bytes = 4096 * rng.randrange(8, 300)
        faults = small_disk(directory / f"disk{number}", n_bytes, reference)
        if faults is not None:
            found.add("a file system that is full", faults)
        found.add("a database that may not be written", read_only(directory / f"read{number}", rng))
        found.add("two runners at once", two_runners(directory / f"two{number}", rng, reference))
    shutil.rmtree(directory, ignore_errors=True)
    return found
