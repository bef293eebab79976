"""Code of the user's own that is edited between the sessions of a study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command, spawn

HELPER = """
from torch.nn.functional import mse_loss


def loss(output, target):
    return mse_loss(output, target)
"""

MODULE = """
import functools

import torch
from torch import nn

from kftune.problems import Problem, Split
from my_losses import loss


def line(*, device, dtype, data_dir):
    x = torch.linspace(0, 1, 8, dtype=dtype, device=device)[:, None]
    return Problem(name="line", likelihood="gaussian", make_model=functools.partial(nn.Linear, 1, 1), loss=loss,
                   train=Split(x, x), test=Split(x, x))
"""

STUDY = """\
name: own
problems: ["my_line:line"]
optimizers: [{name: sgd, fixed: {batch_size: 4}}]
budget: {updates: 3}
trials: TRIALS
repeats: 1
startup_trials: 1
sampler: random
threads: 1
evaluation: {points: 1}
"""


@pytest.mark.parametrize(
    ("edited", "addition"),
    [("my_line.py", "# another comment\n"), ("my_losses.py", "\ndef other(x):\n    return x\n"), (None, "")],
)
def test_a_session_with_other_code_says_so_and_so_do_status_and_page(
    workdir: Path, kftune: Command, edited: str | None, addition: str
) -> None:
    (workdir / "my_line.py").write_text(MODULE)
    (workdir / "my_losses.py").write_text(HELPER)
    (workdir / "study.yaml").write_text(STUDY.replace("TRIALS", "2"))
    first = spawn("run", "study.yaml", cwd=workdir)
    assert first.code == 0, first.err
    assert "the code of" not in first.out + first.err
    if edited is not None:
        with (workdir / edited).open("a") as file:
            file.write(addition)
    (workdir / "study.yaml").write_text(STUDY.replace("TRIALS", "5"))
    second = spawn("run", "study.yaml", cwd=workdir)
    assert second.code == 0, second.err
    said = " ".join((second.out + second.err).split())
    assert ("the code of my_line:line has changed since 2 of the stored runs were made" in said) is (edited is not None)
    (file_status,) = json.loads(kftune("status", "--storage", "own.db", "--json").out)["files"]
    changes = file_status["code_changes"]
    assert [(change["target"], list(change["n_runs"].values())) for change in changes] == (
        [("my_line:line", [2, 3])] if edited else []
    )
    shown = " ".join(kftune("status", "--storage", "own.db").out.split())
    assert ("note: the code of my_line:line was changed between sessions: 2 runs by sha256:" in shown) is bool(edited)
    assert kftune("dashboard", "--storage", "own.db", "--out", "own.html").code == 0
    assert ("the code of my_line:line was changed" in Path("own.html").read_text()) is bool(edited)
