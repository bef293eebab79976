"""A study of the user's own optimizers and problem, by the real command line and its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kftune.results import Outcome
from kftune.storage.repository import Repository
from tests.cli.conftest import spawn
from tests.house.pages import blocks, write_files

OPTIM = '''
from kftune.optim import ModelOptimizer


class Signs(ModelOptimizer):
    """Steps of one size.

    Args:
        lr: the size.
    """

    def __init__(self, model, *, lr: float = 0.01, likelihood=None, seed=0):
        from my_helpers import checked  # late, as in the worker

        super().__init__(model, {"lr": checked(lr)})

    def _update(self):
        from my_helpers import sign  # later still

        with self.phases.phase("update"):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(sign(p.grad), alpha=group["lr"])

    def coverage(self):
        return self._coverage("sign")
'''

HELPERS = """
def checked(lr):
    return lr


def sign(x):
    return x.sign()
"""

PROBLEM = """
import functools

import torch
from torch import nn
from torch.nn.functional import mse_loss

from kftune.problems import Problem, Split


def load(*, device, dtype, data_dir, noise: float = 0.0):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]]) + noise * torch.randn(300, 1, generator=generator)
    x, y = (t.to(device=device, dtype=dtype) for t in (x, y))
    return Problem(name="plane", likelihood="gaussian", make_model=functools.partial(nn.Linear, 4, 1), loss=mse_loss,
                   train=Split(x[:200], y[:200]), test=Split(x[200:], y[200:]))
"""

STUDY = """\
name: own
problems:
  - {name: plane, target: "my_problem:load", args: {noise: 0.1}}
optimizers:
  - name: sgd
    space: {lr: {low: 1.0e-3, high: 0.1, log: true}}
    fixed: {batch_size: 32, momentum: 0.9}
  - name: torch_sgd
    target: torch.optim:SGD
    space: {lr: {low: 1.0e-3, high: 0.1, log: true}}
    fixed: {batch_size: 32, momentum: 0.9, nesterov: true, fused: true}
  - target: torch.optim:RMSprop
    space: {lr: {low: 1.0e-4, high: 0.1, log: true}, batch_size: {low: 16, high: 64, log: true}}
  - target: my_optim:Signs
    space: {lr: {low: 1.0e-3, high: 0.1, log: true}}
    fixed: {batch_size: 16, effective_batch_size: 48}
budget: {updates: 20}
trials: 2
repeats: 2
startup_trials: 2
sampler: random
threads: 1
evaluation: {points: 4}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The study file with its modules beside it; commands are given in another directory."""
    found = tmp_path / "study"
    found.mkdir()
    for name, text in {"my_optim": OPTIM, "my_helpers": HELPERS, "my_problem": PROBLEM}.items():
        (found / f"{name}.py").write_text(text)
    (found / "study.yaml").write_text(STUDY)
    (tmp_path / "elsewhere").mkdir()
    return found


def runs_of(database: Path) -> list[Any]:
    with Repository.open(f"sqlite:///{database}", create=False) as repository:
        return repository.runs()


def test_it_runs_resumes_and_is_read_wherever_the_commands_are_given(directory: Path) -> None:
    elsewhere = directory.parent / "elsewhere"
    done = spawn("run", "../study/study.yaml", cwd=elsewhere)
    assert (done.code, done.err) == (0, "")
    runs = runs_of(elsewhere / "own.db")
    assert len(runs) == 16
    for run in runs:
        assert run.result.outcome is Outcome.COMPLETED, run.result.message
        assert run.result.updates == 20
        assert run.result.phase_seconds["forward_backward"] > 0
        assert run.result.phase_seconds["update"] > 0
    by_study = {run.study: run for run in runs if (run.trial, run.repeat) == (0, 0)}
    signs = by_study["own/plane/signs"].result
    assert signs.examples == 20 * 48
    assert signs.curve[-1].test_loss < signs.curve[0].test_loss
    first_points = {run.result.curve[0].test_loss for run in runs if run.repeat == 0}
    assert len(first_points) == 1  # the same initial weights for all

    resumed = spawn("resume", "--set", "trials=3", cwd=elsewhere)
    assert (resumed.code, resumed.err) == (0, "")
    assert len(runs_of(elsewhere / "own.db")) == 24
    assert "own: 12 of 12 trials, complete" in spawn("status", cwd=elsewhere).out
    with Repository.open(f"sqlite:///{elsewhere / 'own.db'}", create=False) as repository:
        versions = repository.sessions()[-1].versions
    assert versions["my_optim:Signs"].startswith("sha256:")
    assert versions["my_problem:load"].startswith("sha256:")


def test_torchs_sgd_and_the_registrys_give_the_same_losses_bit_for_bit(directory: Path) -> None:
    space = "space={lr: {choices: [0.02]}}"
    settings = [f"optimizers[{i}].{space}" for i in (0, 1)]
    done = spawn("run", "study.yaml", *(part for s in settings for part in ("--set", s)), cwd=directory)
    assert (done.code, done.err) == (0, "")
    curves = {
        name: {
            (run.trial, run.repeat): [(p.update, p.train_loss, p.test_loss) for p in run.result.curve]
            for run in runs_of(directory / "own.db")
            if run.study == f"own/plane/{name}"
        }
        for name in ("sgd", "torch_sgd")
    }
    assert len(curves["sgd"]) == 4
    assert curves["sgd"] == curves["torch_sgd"]
    assert all(curve[-1][2] < 0.5 * curve[0][2] for curve in curves["sgd"].values())


def test_a_moved_study_says_where_it_looked_and_goes_on_where_it_is_told(directory: Path) -> None:
    assert spawn("run", "study.yaml", "--set", "trials=1", cwd=directory).code == 0
    code = directory.parent / "elsewhere" / "code"
    code.mkdir()
    for path in directory.glob("my_*.py"):
        path.rename(code / path.name)
    lost = spawn("resume", "--set", "trials=2", cwd=directory)
    assert lost.code == 2
    assert f"there is no module 'my_problem' in {directory} or among the installed ones" in lost.err
    found = spawn("resume", "--set", "trials=2", "--set", f"module_dir={code}", cwd=directory)
    assert (found.code, found.err) == (0, "")
    assert len(runs_of(directory / "own.db")) == 16


def test_a_mistake_in_their_update_is_their_traceback(directory: Path) -> None:
    (directory / "my_helpers.py").write_text(HELPERS.replace("x.sign()", "x.sgn_of()"))
    done = spawn("run", "study.yaml", cwd=directory)
    assert done.code == 1
    assert "own/plane/signs crashed 3 times in the same way" in done.err
    assert "my_helpers.py" in done.err
    assert "'Tensor' object has no attribute 'sgn_of'" in done.err


def test_another_target_under_the_same_name_is_refused(directory: Path) -> None:
    assert spawn("run", "study.yaml", "--set", "trials=1", cwd=directory).code == 0
    before = (directory / "own.db").read_bytes()
    overrides = ("--set", "optimizers[2].target=torch.optim:Adagrad", "--set", "optimizers[2].name=rmsprop")
    changed = spawn("run", "study.yaml", *overrides, cwd=directory)
    assert changed.code == 2
    assert "optimizer: torch.optim:RMSprop → torch.optim:Adagrad" in changed.err
    assert (directory / "own.db").read_bytes() == before


def test_the_documentations_study_of_ones_own_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "own-optimizer.md"
    write_files(page, tmp_path)
    (study,) = blocks(page, "yaml")
    (tmp_path / "study.yaml").write_text(study.text)
    small = ("budget={updates: 3}", "trials=1", "repeats=1", "threads=1", "devices=cpu")
    done = spawn("run", "study.yaml", *(part for setting in small for part in ("--set", setting)), cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    runs = runs_of(tmp_path / "own.db")
    assert [run.study for run in runs] == ["own/plane/sgd", "own/plane/adam", "own/plane/signdescent"]
    assert all(run.result.outcome is Outcome.COMPLETED for run in runs)
