"""Sums of outer products gathered for one update, over any number of micro-batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kftune.optim._factors import symmetrize_
from kftune.optim._layers import Layer


class Statistics:
    """Σ ā āᵀ and Σ g gᵀ of every layer, reduced as soon as an activation or gradient is seen.

    A counts rows (examples times positions times uses of the module), G counts examples: for the mean loss of
    sequences, g of one position is its share of the example's loss (Eschenhagen et al. 2023, "expand").

    Attributes:
        n_examples: examples seen.
        gradient_scale: what the gradients that were added must be multiplied with to be the unreduced loss'.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self._inputs: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._n_rows: dict[str, int] = {}
        self.n_examples = 0
        self.gradient_scale = 1

    def add_input(self, name: str, a: Tensor) -> None:
        """Add the inputs (…, d_i) of one use of a layer."""
        layer = self._layers[name]
        if name not in self._inputs:
            self._inputs[name] = layer.weight.new_zeros(layer.d_A, layer.d_A)
        self._n_rows[name] = self._n_rows.get(name, 0) + layer.add_input(self._inputs[name], a.detach())

    def add_gradient(self, name: str, g: Tensor) -> None:
        """Add the gradients (…, d_o) by one use's outputs."""
        layer = self._layers[name]
        if name not in self._gradients:
            self._gradients[name] = layer.weight.new_zeros(layer.d_G, layer.d_G)
        layer.add_gradient(self._gradients[name], g.detach())

    def input_covariances(self) -> dict[str, Tensor]:
        """Layer → A of this update, for the layers that were used. Consumes the sums."""
        sums, self._inputs = self._inputs, {}
        if sums:
            torch._foreach_div_(list(sums.values()), [float(self._n_rows[name]) for name in sums])
        return {name: symmetrize_(total) for name, total in sums.items()}

    def gradient_covariances(self) -> dict[str, Tensor]:
        """Layer → G of this update, for the layers that were used. Consumes the sums."""
        sums, self._gradients = self._gradients, {}
        if sums:
            torch._foreach_mul_(list(sums.values()), self.gradient_scale**2 / self.n_examples)
        return {name: symmetrize_(total) for name, total in sums.items()}
