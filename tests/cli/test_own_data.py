"""Data of a problem of the user's own that lie in ``--data-dir`` alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import kftune as package
from kftune.problems import default_data_dir
from kftune.storage.repository import Repository
from tests.cli.conftest import Command

MODULE = """
import functools
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss

from kftune.problems import Problem, Split


def line(*, device, dtype, data_dir):
    numbers = [float(n) for n in (data_dir / "line.txt").read_text().split()]
    x = torch.tensor(numbers, dtype=dtype, device=device)[:, None]
    with (data_dir / "loaded.txt").open("a") as log:
        log.write(f"{os.getpid()}\\n")
    return Problem(name="line", likelihood="gaussian", make_model=functools.partial(nn.Linear, 1, 1), loss=mse_loss,
                   train=Split(x, x), test=Split(x, x))
"""

STUDY = """\
name: own
problems: ["my_line:line"]
optimizers: [{name: sgd, fixed: {batch_size: 4}}]
budget: {updates: 3}
trials: 2
repeats: 1
sampler: random
threads: 1
evaluation: {points: 1}
"""


@pytest.fixture
def data(workdir: Path) -> Path:
    """Where the only data are; ``KFTUNE_DATA`` is another directory. The study lies in the current one."""
    directory = workdir / "here"
    directory.mkdir()
    (directory / "line.txt").write_text(" ".join(str(n / 8) for n in range(8)))
    (workdir / "my_line.py").write_text(MODULE)
    (workdir / "study.yaml").write_text(STUDY)
    return directory


def loads(data: Path) -> list[str]:
    """Process of every load since the last call."""
    log = data / "loaded.txt"
    found = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def test_run_and_resume_read_them_there_and_a_run_loads_them_once(kftune: Command, data: Path) -> None:
    where = ("--data-dir", str(data))
    assert kftune("run", "study.yaml", *where).code == 0
    found = loads(data)
    with Repository.open(f"sqlite:///{data.parent / 'own.db'}", read_only=True) as repository:
        n_runs = sum(len(repository.runs("own/line/sgd", superseded=kind)) for kind in (False, True))
    assert len(found) == 1 + n_runs  # once to count the examples
    assert found.count(str(os.getpid())) == 1  # runs are in processes of their own
    assert kftune("resume", *where).code == 0
    failed = kftune("resume")
    assert failed.code != 0
    assert "FileNotFoundError" in failed.err


def test_the_directory_is_forgotten_after_the_command(kftune: Command, data: Path) -> None:
    assert kftune("run", "study.yaml", "--dry-run", "--data-dir", str(data)).code == 0
    assert loads(data)
    assert default_data_dir() == data.parent.parent / "data"
    failed = kftune("run", "study.yaml", "--dry-run")
    assert failed.code != 0
    assert "FileNotFoundError" in failed.err


def test_studies_from_python_read_them_there(data: Path) -> None:
    results = package.run_study("study.yaml", data_dir=data, workers=1, progress=False)
    assert len(results.runs()) == 2
    study = package.Study("study.yaml", data_dir=data)
    assert len(study.run(progress=False).runs()) == 2  # complete already
