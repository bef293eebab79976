"""Two studies on one host at the same time, read meanwhile: they take turns, and nobody is locked out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kftune.storage.repository import Repository
from tests.study.test_kill import write_study

_TOLERANCE = timedelta(seconds=0.05)  # between the end of a run in its worker and the runner's word of it


def start(*arguments: str, cores: set[int]) -> subprocess.Popen[str]:
    """A kftune command that may use these cores only."""
    script = (
        f"import os; os.sched_setaffinity(0, {cores!r})\nfrom kftune.cli import main\nimport sys\n"
        f"sys.argv = ['kftune', *{arguments!r}]\nmain()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def intervals(url: str) -> list[tuple[datetime, datetime]]:
    with Repository.open(url, create=False) as repository:
        runs = repository.runs()
    return [(run.started_at, run.started_at + timedelta(seconds=run.wall_seconds)) for run in runs]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be kept on a core here")
@pytest.mark.timeout(600)
def test_two_studies_on_one_core_take_turns_and_can_be_read_meanwhile(tmp_path: Path) -> None:
    core = {min(os.sched_getaffinity(0))}
    studies = [write_study(tmp_path, name, "random", trials=2, updates=600) for name in ("one", "two")]
    processes = [start("run", str(path), cores=core) for path, _ in studies]
    readings = 0
    while any(process.poll() is None for process in processes):
        for path, url in studies:
            if not Path(url.removeprefix("sqlite:///")).exists():
                continue
            reader = start("status", str(path), "--json", cores=core)
            output, _ = reader.communicate(timeout=120)
            assert "locked" not in output
            readings += reader.returncode == 0
        time.sleep(1.0)  # the readers share the core with those they read
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert "locked" not in output
    assert readings >= 2
    one, two = (intervals(url) for _, url in studies)
    assert len(one) == len(two) == 2 * 2 * 2
    overlaps = [(a, b) for a in one for b in two if min(a[1], b[1]) - max(a[0], b[0]) > _TOLERANCE]
    assert overlaps == []
    # Neither had the core for itself until it was done.
    assert min(two)[0] < max(one)[1]
    assert min(one)[0] < max(two)[1]
