"""A working directory, the command line in this process and in one of its own, and a study that was run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pytest

from kftune.cli import main
from tests.processes import warm

STUDY = """\
name: small
problems: [digits_mlp]
optimizers:
  - {name: sgd, fixed: {batch_size: 64, momentum: 0.9}}
  - {name: kfac, space: {damping: {low: 1e-3, high: 1}}}
budget: {updates: 5}
trials: 2
repeats: 2
startup_trials: 2
sampler: random
threads: 1
evaluation: {points: 2}
"""


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Command: TypeAlias = Callable[..., Result]


def spawn(*arguments: str, cwd: Path) -> Result:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "kftune", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    done = warm.run(command, cwd=cwd, env=environment)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("KFTUNE_DATA", str(tmp_path / "data"))
    return directory


@pytest.fixture
def study_file(workdir: Path) -> Path:
    """``study.yaml`` in the current directory."""
    path = workdir / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def kftune(workdir: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, in an empty directory."""

    def run(*arguments: str) -> Result:
        code = main(list(arguments))
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def finished_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The database of :data:`STUDY`, run to its end."""
    directory = tmp_path_factory.mktemp("finished")
    (directory / "study.yaml").write_text(STUDY)
    result = spawn("run", "study.yaml", cwd=directory)
    assert result.code == 0, result.err
    assert not (directory / "small.db-wal").exists()
    return (directory / "small.db").read_bytes()


@pytest.fixture
def finished(study_file: Path, finished_database: bytes) -> Path:
    """The finished study's database beside its study file in the current directory."""
    path = study_file.with_name("small.db")
    path.write_bytes(finished_database)
    return path
