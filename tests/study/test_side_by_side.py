"""Two studies on one host at the same time, read meanwhile: they take turns, and nobody is locked out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from kftune.cli import main
from kftune.storage.repository import Repository
from tests.processes.database import count_runs
from tests.processes.warm import WarmPopen
from tests.study.test_kill import write_study

_TOLERANCE = timedelta(seconds=0.05)  # between the end of a run in its worker and the runner's word of it


def start(*arguments: str, cores: set[int]) -> subprocess.Popen[str]:
    """A kftune command that may use these cores only."""
    return WarmPopen(
        [sys.executable, "-m", "kftune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        preexec_fn=partial(os.sched_setaffinity, 0, cores),
    )


@contextmanager
def served(*databases: Path, cores: set[int]) -> Iterator[str]:
    """The address of an open dashboard; at its end it has said nothing more."""
    process = start("serve", *map(str, databases), "--port", "0", "--json", cores=cores)
    assert process.stdout is not None
    try:
        lines = []
        while (line := process.stdout.readline()) != "}\n":
            assert line, "".join(lines)
            lines.append(line)
        yield str(json.loads("".join([*lines, "}"]))["url"])
    finally:
        process.kill()
        rest, _ = process.communicate()
    assert rest == ""


def got(url: str, path: str) -> str:
    try:
        with urlopen(url.rstrip("/") + path, timeout=60) as answer:
            return str(answer.read().decode())
    except HTTPError as error:
        raise AssertionError(error.read().decode()) from error


def intervals(url: str) -> list[tuple[datetime, datetime]]:
    with Repository.open(url, create=False) as repository:
        runs = repository.runs()
    return [(run.started_at, run.started_at + timedelta(seconds=run.wall_seconds)) for run in runs]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be kept on a core here")
def test_two_studies_on_one_core_take_turns_and_can_be_read_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = {min(os.sched_getaffinity(0))}
    studies = [write_study(tmp_path, name, "random", trials=1, updates=500) for name in ("one", "two")]
    for path, _ in studies:
        path.write_text(path.read_text().replace("name: kill", f"name: {path.stem}"))
    databases = [Path(url.removeprefix("sqlite:///")) for _, url in studies]
    processes = [start("run", str(path), cores=core) for path, _ in studies]

    def is_running() -> bool:
        return any(process.poll() is None for process in processes)

    while not all(count_runs(database) for database in databases):
        assert is_running()
        time.sleep(0.05)
    readings, revisions = 0, set()
    with served(*databases, cores=os.sched_getaffinity(0)) as url:
        while is_running():
            for path, _ in studies:
                assert main(["status", str(path), "--json"]) == 0
                assert json.loads(capsys.readouterr().out)["files"]
            revisions.add(got(url, "/revision"))
            assert "sorted-losses" in got(url, "/main")
            readings += 1
            time.sleep(0.2)  # the readers share the machine with those they read
        # A page that took long to render rests before it is rendered again.
        for _ in range(300):
            if len(revisions) > 1:
                break
            time.sleep(0.2)
            revisions.add(got(url, "/revision"))
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert "locked" not in output
    assert readings >= 2
    assert len(revisions) >= 2  # the page was seen to change
    one, two = (intervals(url) for _, url in studies)
    assert len(one) == len(two) == 2 * 2
    overlaps = [(a, b) for a in one for b in two if min(a[1], b[1]) - max(a[0], b[0]) > _TOLERANCE]
    assert overlaps == []
    # Neither had the core for itself until it was done.
    assert min(two)[0] < max(one)[1]
    assert min(one)[0] < max(two)[1]
