"""Sums of outer products gathered for one update, over any number of micro-batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from kftune.optim.curvature.layers import ConvLayer, Layer, fold
from kftune.optim.curvature.patches import mean_patch
from kftune.optim.linalg.gram import add_gram, add_homogeneous_gram, symmetrize_
from kftune.optim.linalg.products import padded_zeros

WeightSharing: TypeAlias = Literal["expand", "reduce"]
"""What becomes of the T positions (of a sequence, of an image) at which a layer's weight is used: ``expand`` takes
each for an example of A and G, ``reduce`` averages ā and sums g over them first (Eschenhagen et al. 2023)."""
WEIGHT_SHARINGS: tuple[str, ...] = get_args(WeightSharing)


class Statistics:
    """Σ ā āᵀ and Σ g gᵀ of every layer, reduced as soon as an activation or gradient is seen.

    With ``expand``, A counts rows (examples times positions times uses of the module) and G counts examples: for the
    mean loss of sequences, g of one position is its share of the example's loss. With ``reduce``, A counts examples
    times uses of the module.

    Attributes:
        n_examples: examples seen.
        seen: layers that a forward pass has shown, whether or not it was asked for sums.
    """

    def __init__(self, layers: Iterable[Layer], sharing: WeightSharing = "expand") -> None:
        self._layers = {layer.name: layer for layer in layers}
        self._reduce = sharing == "reduce"
        self._inputs: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._n_rows: dict[str, int] = {}
        self.n_examples = 0
        self._in_batch = 0
        self.seen: set[str] = set()
        self._gradient_scale = 1.0

    def begin_batch(self, n_examples: int) -> None:
        """Say how many examples the micro-batch has: with ``reduce`` before anything of it is added."""
        self._in_batch = n_examples
        self.n_examples += n_examples

    def add_input(self, name: str, a: Tensor) -> None:
        """Add the module's input at one use of a layer."""
        layer = self._layers[name]
        if name not in self._inputs:
            self._inputs[name] = padded_zeros(layer.d_A, layer.d_A, like=layer.weight)
        if self._reduce:
            rows = self._input_rows(layer, a)
            (add_gram if layer.bias is None else add_homogeneous_gram)(self._inputs[name], rows)
            n_rows = len(rows)
        else:
            n_rows = layer.add_input_gram(self._inputs[name], a.detach())
        self._n_rows[name] = self._n_rows.get(name, 0) + n_rows

    def _input_rows(self, layer: Layer, a: Tensor) -> Tensor:
        """(rows of A's sample, d_i), without the homogeneous 1."""
        a = a.detach()
        if not self._reduce:
            rows = layer.input_rows(a)
        elif isinstance(layer, ConvLayer):
            rows = fold(mean_patch(a[:, layer.inputs], layer.window)[:, None], self._in_batch, layer.name).mean(dim=1)
        else:
            rows = fold(layer.input_rows(a), self._in_batch, layer.name).mean(dim=1)
        return rows.reshape(-1, rows.shape[-1]).to(layer.dtype)

    def set_gradient_scale(self, scale: float) -> None:
        """Say what the gradients added from here on must be multiplied with; 1 at first."""
        if scale != self._gradient_scale:
            self._rescale_gradients(self._gradient_scale / scale)
        self._gradient_scale = scale

    def _rescale_gradients(self, factor: float) -> None:
        """Make the sums those of gradients ``factor`` times as long."""
        if self._gradients:
            torch._foreach_mul_(list(self._gradients.values()), factor**2)

    def add_gradient(self, name: str, g: Tensor) -> None:
        """Add the gradient by the module's output at one use of a layer."""
        layer = self._layers[name]
        if name not in self._gradients:
            self._gradients[name] = padded_zeros(layer.d_G, layer.d_G, like=layer.weight)
        add_gram(self._gradients[name], self._gradient_rows(layer, g))

    def _gradient_rows(self, layer: Layer, g: Tensor) -> Tensor:
        """(rows of G's sample, d_G)."""
        rows = layer.output_rows(g.detach())
        if self._reduce:
            rows = fold(rows, self._in_batch, layer.name).sum(dim=1)
        rows = rows.reshape(-1, rows.shape[-1])
        return rows.to(layer.dtype)

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
            torch._foreach_mul_(list(sums.values()), self._gradient_scale**2 / self.n_examples)
        return {name: symmetrize_(total) for name, total in sums.items()}
