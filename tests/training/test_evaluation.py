"""What an evaluation measures, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn

from kftune.problems import PROBLEMS, Problem, Split
from kftune.results import Outcome, RunSpec
from kftune.training.loop.evaluation import measure, random_state_kept
from kftune.training.loop.trainer import train

CPU = torch.device("cpu")
PARAMS = {"kfac": {"lr": 0.02, "damping": 0.1}, "adamw": {"lr": 0.01}, "sgd": {"lr": 0.05}}

NOISY = """
import random
import numpy as np
import torch
from torch import nn
from kftune.problems import Problem, Split


class Noisy(nn.Module):
    \"\"\"Draws in training and in evaluation alike.\"\"\"

    def __init__(self, source):
        super().__init__()
        self.linear, self.source = nn.Linear(3, 1), source

    def forward(self, x):
        draw = {"torch": lambda: torch.randn(()), "numpy": lambda: torch.tensor(np.random.standard_normal()),
                "python": lambda: torch.tensor(random.gauss(0, 1)), "none": lambda: torch.zeros(())}
        return self.linear(x + 0.3 * draw[self.source]().to(x))


def load(*, device, dtype, data_dir, source="torch"):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(96, 3, generator=g).to(device=device, dtype=dtype)
    y = x.sum(1, keepdim=True)
    return Problem(name="noisy", likelihood="gaussian", make_model=lambda: Noisy(source), loss=nn.functional.mse_loss,
                   train=Split(x[:64], y[:64]), test=Split(x[64:], y[64:]))
"""


@pytest.mark.parametrize("source", ["torch", "numpy", "python", "none"])
@pytest.mark.parametrize("optimizer", PARAMS)
def test_training_does_not_depend_on_how_often_it_is_evaluated(tmp_path: Path, source: str, optimizer: str) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)

    def curve(n_evaluations: int) -> list[float]:
        random.seed(0)
        np.random.seed(0)
        result = train(
            RunSpec(
                problem="noisy:load",
                problem_args={"source": source},
                optimizer=optimizer,
                params={"batch_size": 16, **PARAMS[optimizer]},
                seed=3,
                budget_updates=12,
                n_evaluations=n_evaluations,
                module_dir=str(tmp_path),
            )
        )
        assert result.outcome is Outcome.COMPLETED, result.message
        return [point.test_loss for point in result.curve]

    often, once = curve(12), curve(1)
    assert [often[0], often[-1]] == once
    assert len(set(often)) == len(often)


def test_the_same_numbers_come_after_it() -> None:
    class WithGenerator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(5)

    model = nn.Sequential(WithGenerator())

    def drawn() -> list[float]:
        own = model[0].generator
        assert isinstance(own, torch.Generator)
        numbers = [torch.rand(()), torch.rand((), generator=own), np.random.rand(), random.random()]
        return [float(number) for number in numbers]

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    with random_state_kept(CPU, model):
        inside = [drawn(), drawn()]
    with contextlib.suppress(KeyError), random_state_kept(CPU, model):
        drawn()
        raise KeyError
    assert [drawn(), drawn()] == inside


def scored(score: Callable[[Tensor, Tensor], float], *, is_mean: bool = False, n: int = 5000) -> tuple[Problem, Split]:
    """A classifier of sorted classes, so that chunks of examples have shares of their own."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.arange(n) > 0.83 * n).long()
    inputs = targets[:, None] + torch.randn(n, 1, generator=generator)
    split = Split(inputs, targets)
    problem = Problem(
        name="scored",
        likelihood="categorical",
        make_model=nn.Identity,
        loss=lambda output, targets: (output[:, 0] - targets).square().mean(),
        train=split,
        test=split,
        accuracy=lambda output, targets: torch.tensor(score(output, targets), dtype=torch.float64),
        accuracy_is_mean=is_mean,
    )
    return problem, split


def f1(output: Tensor, targets: Tensor) -> float:
    return float(f1_score(targets, output[:, 0] > 0.5))


def auc(output: Tensor, targets: Tensor) -> float:
    return float(roc_auc_score(targets, output[:, 0])) if 0 < targets.sum() < len(targets) else 0.5


@pytest.mark.parametrize("micro_batch", [None, 7, 1000, 9000])
@pytest.mark.parametrize("score", [f1, auc])
def test_an_accuracy_is_that_of_all_examples(score: Callable[[Tensor, Tensor], float], micro_batch: int | None) -> None:
    problem, split = scored(score)
    loss, accuracy = measure(nn.Identity(), problem, split, dtype=torch.float32, micro_batch=micro_batch)
    assert accuracy == score(split.inputs, split.targets)
    assert loss == pytest.approx(float((split.inputs[:, 0] - split.targets).double().square().mean()), rel=1e-6)


def test_a_mean_over_examples_may_be_taken_in_parts() -> None:
    sizes: list[int] = []

    def share(output: Tensor, targets: Tensor) -> float:
        sizes.append(len(output))
        return float(((output[:, 0] > 0.5) == targets).double().mean())

    problem, split = scored(share, is_mean=True)
    _, accuracy = measure(nn.Identity(), problem, split, dtype=torch.float32)
    assert accuracy == pytest.approx(float(((split.inputs[:, 0] > 0.5) == split.targets).double().mean()), rel=1e-12)
    assert sizes == [2048, 2048, 904]


def test_kftunes_own_accuracies_are_declared_means(tmp_path: Path) -> None:
    for name in ("digits_mlp", "digits_resnet", "digits_transformer"):
        problem = PROBLEMS.get(name).load(device=CPU, dtype=torch.float32, data_dir=tmp_path)
        assert problem.accuracy_is_mean
        torch.manual_seed(0)
        model = problem.make_model().eval()
        whole = measure(model, replace(problem, accuracy_is_mean=False), problem.test, dtype=torch.float32)
        parts = measure(model, problem, problem.test, dtype=torch.float32, micro_batch=50)
        assert parts == pytest.approx(whole, rel=1e-5)  # sums in another order


class InBfloat16(nn.Module):
    """As users write it who train under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return x.bfloat16()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_in_bfloat16_are_measured_in_the_precision_of_the_run(dtype: torch.dtype) -> None:
    problem, split = scored(auc)
    split = Split(split.inputs.to(dtype), split.targets)
    expected = (split.inputs[:, 0].bfloat16().double() - split.targets).square().mean()
    loss, _ = measure(InBfloat16(), problem, split, dtype=dtype)
    assert loss == pytest.approx(float(expected), rel=1e-6)


def test_an_autocast_that_surrounds_the_run_is_not_that_of_its_measurements() -> None:
    problem, split = scored(auc)
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = measure(model, problem, split, dtype=torch.float32)
    assert inside == measure(model, problem, split, dtype=torch.float32)
