"""What passed a layer, as rows ā and g of examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kftune.optim.curvature.layers import Layer, fold


class Rows(NamedTuple):
    """What passed one layer in one micro-batch, example by example.

    Attributes:
        inputs: ā, (N, T, d_A), T positions of all uses of the module in a row.
        gradients: g of the unreduced loss of one example, (N, T, d_G).
        positions: the shape of the T positions, e.g. (H', W'); (T,) if the module was used more than once.
        uses: how many of the T positions each use of the module has, in a row; () for a single use.
    """

    inputs: Tensor
    gradients: Tensor
    positions: tuple[int, ...]
    uses: tuple[int, ...] = ()


class Passed(NamedTuple):
    """What passed a module at one use.

    Attributes:
        a: its input.
        g: the gradient of the unreduced loss by its output.
        positions: see :meth:`kftune.optim.curvature.layers.Layer.positions`.
    """

    a: Tensor
    g: Tensor
    positions: tuple[int, ...]


def make_rows(layer: Layer, passed: Sequence[Passed], n_examples: int) -> Rows:
    """All positions of all uses of a layer in a row.

    Raises:
        RuntimeError: the rows do not belong to examples.
    """
    parts: list[Rows] = []
    for a, g, positions in passed:
        inputs = layer.homogeneous_rows(layer.examples_first(a, n_examples)).to(layer.dtype)
        gradients = layer.output_rows(layer.examples_first(g, n_examples)).to(layer.dtype)
        inputs, gradients = (fold(t, n_examples, layer.name) for t in (inputs, gradients))
        own = positions if math.prod(positions) == inputs.shape[1] else (inputs.shape[1],)
        parts.append(Rows(inputs, gradients, own))
    if len(parts) == 1:
        return parts[0]
    inputs = torch.cat([part.inputs for part in parts], dim=1)
    gradients = torch.cat([part.gradients for part in parts], dim=1)
    return Rows(inputs, gradients, (inputs.shape[1],), tuple(part.inputs.shape[1] for part in parts))


class LazyRows(Mapping[str, Rows]):
    """Layer → rows, made whenever they are looked up.

    Args:
        makers: layer → what makes its rows.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Rows]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Rows:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
