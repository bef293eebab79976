"""A small study whose problem is code of a user's, and the command that runs it as a process of its own."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

from kftune.storage.repository import Repository, RunRecord
from tests.processes import warm
from tests.processes.database import connected

STUDY = """\
name: chaos
problems: [{problems}]
optimizers: [{{name: sgd, fixed: {{batch_size: 64, momentum: 0.9}}}}]
budget: {{updates: {updates}}}
trials: {trials}
repeats: {repeats}
sampler: random
seed: 3
threads: 1
devices: cpu
evaluation: {{points: 2}}
"""

_MODULE = '''\
"""A problem of a user's: the digits, and what its author got wrong, in the sixth training step of a run."""
import ctypes, os, pathlib, random, signal, subprocess, sys, threading, time, warnings
from dataclasses import replace
import numpy as np
import torch
from kftune.problems import PROBLEMS

HERE = pathlib.Path(__file__).parent

def first_time():
    """Whether this is the first run that gets here."""
    try:
        (HERE / "seen").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def fault():
{body}

class Faulty(torch.nn.Linear):
    calls = 0

    def forward(self, inputs):
        if self.training:
            self.calls += 1  # the warm-up's copy counts its own
            if self.calls == 6:
                fault()
        return super().forward(inputs)

def load(*, device, dtype, data_dir):
    """Digits."""
    digits = PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)
    return replace(digits, make_model=lambda: Faulty(64, 10))
'''

TARGET = "{target: 'faulty:load', name: faulty}"


def write_study(
    directory: Path, *, problems: str = "digits_mlp", trials: int = 2, repeats: int = 1, updates: int = 20
) -> None:
    """``study.yaml`` in a directory."""
    text = STUDY.format(problems=problems, trials=trials, repeats=repeats, updates=updates)
    (directory / "study.yaml").write_text(text)


def write_fault(directory: Path, body: str) -> None:
    """``faulty.py`` beside the study file, whose model runs some statements in each run's sixth step."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    (directory / "faulty.py").write_text(_MODULE.replace("{body}", lines))


def kftune(directory: Path, *arguments: str, timeout: float = 240) -> tuple[int, str, str]:
    """Exit code, output and errors of a command run in a directory."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "kftune", *arguments]
    done = warm.run(command, cwd=directory, env=environment, timeout=timeout)
    return done.returncode, done.stdout, done.stderr


def integrity(directory: Path) -> bool:
    """Whether SQLite finds nothing wrong with the database."""
    with connected(directory / "chaos.db") as connection:
        return bool(connection.execute("pragma integrity_check").fetchone() == ("ok",))


def runs_of(directory: Path) -> list[RunRecord]:
    """Every run that is stored."""
    with Repository.open(f"sqlite:///{directory / 'chaos.db'}", create=False) as repository:
        return repository.runs()


def is_complete(directory: Path, *, trials: int = 2, repeats: int = 1, studies: int = 1) -> bool:
    """Whether the database is whole, and each run stored in it once, no more and no less."""
    if not integrity(directory):
        return False
    found = Counter((run.study, run.trial, run.repeat) for run in runs_of(directory))
    return len(found) == studies * trials * repeats and set(found.values()) == {1}
