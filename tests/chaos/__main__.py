"""``python -m tests.chaos``: everything at length, and the table of what was tried and found."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kftune._version import __version__
from tests.chaos.kills import SIGNALS, TARGETS, Kills, kill_cycles
from tests.chaos.malformed import good_database, wrong_databases, wrong_study_files
from tests.chaos.places import Places, bad_places
from tests.chaos.user_code import MISDEEDS, Misdeeds, misdeeds
from tests.processes.warm import warm

_TITLES = {"runner": "the runner", "worker": "a worker", "group": "runner and workers"}
_SIGNAL_TITLES = {"TERM": "TERM", "INT": "INT", "STOP": "STOP, CONT", "KILL": "KILL"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try everything, write the table; 1 if there were faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--out", type=Path, help="the file to write; otherwise it is printed")
    parser.add_argument("--cycles", type=int, default=500, help="kill cycles")
    parser.add_argument("--rounds", type=int, default=10, help="of each bad place for a database")
    parser.add_argument("--files", type=int, default=150, help="wrong study files")
    parser.add_argument("--databases", type=int, default=40, help="wrong databases and imports")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kftune-chaos-") as directory, warm():
        place = Path(directory)
        os.environ["KFTUNE_LEASE_DIR"] = str(place / "leases")
        code = misdeeds(place / "code", list(MISDEEDS))
        say(f"{len(code.done)} misdeeds of user code", code.faults)
        places = bad_places(place / "places", rounds=options.rounds, seed=options.seed)
        say(f"{sum(places.tried.values())} bad places", places.faults)
        (place / "files").mkdir()
        files = wrong_study_files(place / "files", count=options.files, generator_seed=options.seed)
        say(f"{files[0]} wrong study files", files[1])
        (place / "databases").mkdir()
        good = good_database(place)
        databases = wrong_databases(place / "databases", good, count=options.databases, generator_seed=options.seed)
        say(f"{databases[0]} wrong databases and imports", databases[1])
        kills = kill_cycles(place / "kills", cycles=options.cycles, seed=options.seed)
        say(f"{kills.cycles.total()} kill cycles", kills.faults)
    command = "OMP_NUM_THREADS=1 python -m tests.chaos --out dashboards/reliability.md"
    given = {
        name: value for name, value in vars(options).items() if name != "out" and value != parser.get_default(name)
    }
    changed = [f" --{name} {value}" for name, value in given.items()]
    text = "\n".join(page(kills, code, places, files, databases, command + "".join(changed), time.monotonic() - began))
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text + "\n")
    return 1 if any((kills.faults, code.faults, places.faults, files[1], databases[1])) else 0


def say(what: str, faults: list[str]) -> None:
    """Tell how far it is."""
    print(f"{what}, {len(faults)} faults", *(f"  {fault}" for fault in faults), sep="\n", flush=True)


def page(
    kills: Kills,
    code: Misdeeds,
    places: Places,
    files: tuple[int, list[str]],
    databases: tuple[int, list[str]],
    command: str,
    seconds: float,
) -> Iterator[str]:
    """The lines of the page."""
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "optuna", "SQLAlchemy"))
    yield "# Reliability: what was tried, and what became of it"
    yield ""
    yield "A fault is anything but what is said here: a run that is lost, changed or stored twice, a database that is"
    yield "damaged, a process that is left, a traceback, a second line, a password in a message."
    yield ""
    yield "| what | tried | faults | what has to become of it |"
    yield "| --- | ---: | ---: | --- |"
    same = "the study goes on, and its configurations, seeds and losses are those of one that was not disturbed"
    yield f"| kill cycles, in {kills.studies} studies | {kills.cycles.total()} | {len(kills.faults)} | {same} |"
    for what, n in places.tried.items():
        yield f"| {what} | {n} | {of_place(places, what)} | {_PLACES[what]} |"
    beside = "the study ends; the losses of a second problem are what they are alone; no process is left"
    yield f"| user code that misbehaves | {len(code.done)} | {len(code.faults)} | {beside} |"
    line = "exit code 2, a line for each flaw, nothing written, no password in it"
    yield f"| wrong study files | {files[0]} | {len(files[1])} | {line} |"
    line = "exit code 2 and one line, nothing written or changed"
    yield f"| wrong databases and imports | {databases[0]} | {len(databases[1])} | {line} |"
    yield ""
    yield "## Kill cycles by what was hit"
    yield ""
    yield "Budgets are in updates, so that losses are equal to the bit. Studies with `tpe`, with `qmc`, and with"
    yield "`random` on two workers; a signal comes at a random moment, INT and TERM sometimes twice."
    yield ""
    yield "| | " + " | ".join(_SIGNAL_TITLES[number] for number in SIGNALS) + " |"
    yield "| --- |" + " ---: |" * len(SIGNALS)
    for target in TARGETS:
        yield f"| {_TITLES[target]} | " + " | ".join(str(kills.cycles[target, number]) for number in SIGNALS) + " |"
    yield ""
    yield "## User code"
    yield ""
    yield "In the sixth training step of each run it: " + "; ".join(code.done) + "."
    yield ""
    yield "## How it was made"
    yield ""
    system = f"{platform.system()} {platform.machine().replace('_', '-')}"
    yield f"`{command}`, in {seconds / 60:.0f} minutes"
    yield f"on a machine with {os.cpu_count()} cores, {system}, beside other work; kftune {__version__},"
    yield f"Python {platform.python_version()}, {packages}, SQLite {sqlite3.sqlite_version}."
    yield "The quick suite does the same at shorter length (`tests/chaos/`)."


_PLACES = {
    "a limit on the size of files": "exit code 2 and one line; goes on when there is room, nothing lost",
    "a file system that is full": "the same",
    "a database that may not be written": "exit code 2 and one line, nothing changed",
    "two runners at once": "one works, the other says which process does",
}


def of_place(places: Places, what: str) -> int:
    """How many faults there were in a kind of place."""
    return sum(fault.startswith(f"{what}: ") for fault in places.faults)


if __name__ == "__main__":
    raise SystemExit(main())
