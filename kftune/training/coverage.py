"""What an optimizer does to each parameter of a model, and to how many of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from kftune.optim import ModelOptimizer

__all__ = ["TreatedParameter", "parameters_by_treatment", "treated_parameters"]

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
