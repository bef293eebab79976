import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kftune.storage.repository import Repository
from tests.storage.builders import study_record

ROOT = Path(__file__).parents[2]
STUDY = study_record().study


def start_writer(url: str, n_runs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "tests.storage.writer", url, str(n_runs)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_all(url: str) -> int:
    """Open, read everything, close; returns the number of runs."""
    with Repository.open(url, read_only=True) as repository:
        runs = repository.runs()
        assert all(len(run.result.curve) == 20 for run in runs)
        numbers = {trial.number for trial in repository.trials(STUDY)}
        assert {run.trial for run in runs} <= numbers
        return len(runs)


def test_readers_and_the_writer_do_not_disturb_each_other(url: str, path: Path) -> None:
    with start_writer(url, 60) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        seen = []
        while writer.poll() is None:
            seen.append(read_all(url))
        _, errors = writer.communicate()
    assert writer.returncode == 0, errors
    assert errors == ""
    assert len(set(seen)) > 2, "the reader never saw the database grow"
    assert seen == sorted(seen)
    assert read_all(url) == 60
    assert [entry.name for entry in path.parent.iterdir()] == ["results.db"]


@pytest.mark.parametrize("after_runs", [1, 17])
def test_a_killed_writer_leaves_a_sound_database_with_every_stored_run(url: str, path: Path, after_runs: int) -> None:
    with start_writer(url, 10_000) as writer:
        assert writer.stdout is not None
        for _ in range(after_runs):
            last = int(writer.stdout.readline())
        writer.kill()
        rest = writer.stdout.read().splitlines()
    last = int(rest[-1]) if rest else last
    assert last + 1 in (read_all(url), read_all(url) - 1)  # the kill may come between a commit and its line
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    with Repository.open(url) as repository:  # and it can go on
        repository.register([study_record()])


@pytest.mark.parametrize("delay", [0.0, 0.7, 0.9, 1.1])
def test_a_kill_while_the_database_is_made_leaves_all_of_it_or_nothing(url: str, path: Path, delay: float) -> None:
    with start_writer(url, 1) as writer:
        time.sleep(delay)
        writer.kill()
    if path.exists():
        Repository.open(url, create=False).close()
    with Repository.open(url) as repository:
        repository.register([study_record()])


def test_processes_that_start_at_once_make_one_database(url: str) -> None:
    code = "import sys; from kftune.storage.repository import Repository; Repository.open(sys.argv[1]).close()"
    openers = [
        subprocess.Popen([sys.executable, "-c", code, url], cwd=ROOT, stderr=subprocess.PIPE, env=dict(os.environ))
        for _ in range(4)
    ]
    for opener in openers:
        _, errors = opener.communicate()
        assert opener.returncode == 0, errors.decode()
    Repository.open(url, create=False).close()
