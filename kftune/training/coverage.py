"""What an optimizer does to each parameter of a model, and to how many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kftune.errors import UsageError
from kftune.optim import ModelOptimizer, OptimizerEntry
from kftune.problems import ProblemEntry

__all__ = ["TreatedParameter", "parameters_by_treatment", "treated_parameters", "would_treat"]

_NOT_SAID = "not said"


@dataclass(frozen=True, kw_only=True)
class TreatedParameter:
    """One parameter.

    Attributes:
        name: in the model.
        shape: of the tensor.
        n: its scalars.
        treatment: what the optimizer's ``coverage()`` says of it; ``"not said"`` if it says nothing.
    """

    name: str
    shape: tuple[int, ...]
    n: int
    treatment: str


def treated_parameters(model: nn.Module, optimizer: ModelOptimizer) -> list[TreatedParameter]:
    """Every parameter of ``model``, once, in its order; ``optimizer`` is the one over it."""
    said = optimizer.coverage()
    return [
        TreatedParameter(name=name, shape=tuple(p.shape), n=p.numel(), treatment=said.get(name, _NOT_SAID))
        for name, p in model.named_parameters()
    ]


def parameters_by_treatment(model: nn.Module, optimizer: ModelOptimizer) -> dict[str, int]:
    """Treatment → number of scalars, in the order in which the model's parameters meet them."""
    counts: Counter[str] = Counter()
    for parameter in treated_parameters(model, optimizer):
        counts[parameter.treatment] += parameter.n
    return dict(counts)


def would_treat(
    optimizer: OptimizerEntry, problem: ProblemEntry, *, params: Mapping[str, Any], data_dir: Path
) -> list[TreatedParameter]:
    """What an optimizer would do to each parameter of a problem's model; nothing is trained.

    Args:
        optimizer: its hyperparameters are those of its ``example``, and its defaults.
        problem: with its own arguments at their defaults; loaded onto the CPU.
        params: hyperparameters in place of the example's.
        data_dir: where dataset files are.

    Raises:
        UsageError: the optimizer cannot be used on this model, or the problem cannot be loaded.
        DataMissingError: its data are not in ``data_dir``.
    """
    loaded = problem.load(device=torch.device("cpu"), dtype=torch.float32, data_dir=data_dir)
    model = loaded.make_model()
    try:
        built = optimizer.build(model, likelihood=loaded.likelihood, params=dict(optimizer.example) | dict(params))
    except ValueError as error:
        raise UsageError(f"{optimizer.name} cannot train {problem.name}: {error}") from error
    return treated_parameters(model, built)
