"""The sizes that the cost of a layer's curvature depends on, read off a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from kftune.optim.curvature.layers import find_layers
from kftune.optim.interface import Phase


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """What the cost of a layer's curvature depends on, for one update.

    Attributes:
        d_A: side of A.
        d_G: side of G.
        n_rows: rows of A's sample behind one update: examples times positions.
        n_positions: rows of one example.
    """

    d_A: int  # noqa: N815  # the dimension of A
    d_G: int  # noqa: N815  # the dimension of G
    n_rows: int
    n_positions: int = 1


Floor: TypeAlias = Callable[[Sequence[LayerSize], Mapping[str, Any]], Mapping[Phase, float]]
"""(layers, hyperparameters with every default filled in) → floating-point operations that no implementation of the
method can avoid in an average update, by phase, on top of the 6·Σ n_rows·d_A·d_G of forward and backward passes."""


def layer_sizes(model: nn.Module, forward: Callable[[], object]) -> tuple[LayerSize, ...]:
    """The sizes of a model's trained linear and convolutional layers, in the order of their first use.

    A convolution with groups is several layers; the rows of a module that is used several times add up.

    Args:
        model: the network; it is left as it was.
        forward: runs it on one batch. An output's shape tells the number of rows.
    """
    found = find_layers(model)
    n_rows: dict[str, int] = {}
    n_examples: dict[str, int] = {}

    def add(name: str, output: Tensor) -> None:
        n_rows[name] = n_rows.get(name, 0) + found[name][1][0].n_rows(output)
        n_examples[name] = len(output)

    def hook_for(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: add(name, output)

    handles = [module.register_forward_hook(hook_for(name)) for name, (module, _) in found.items()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return tuple(
        LayerSize(d_A=layer.d_A, d_G=layer.d_G, n_rows=n, n_positions=n // n_examples[name])
        for name, n in n_rows.items()
        for layer in found[name][1]
    )
