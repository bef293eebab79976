"""The sums of :mod:`kftune.optim.curvature.statistics` by rows, where those are few."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kftune.optim.curvature.layers import Layer
from kftune.optim.curvature.rows_or_gram import RowsOrGram, Sample
from kftune.optim.curvature.statistics import Statistics, WeightSharing


class RowStatistics(Statistics):
    """As :class:`Statistics`, but by rows where a side of a layer has fewer of them than entries."""

    def __init__(self, layers: Iterable[Layer], sharing: WeightSharing = "expand") -> None:
        super().__init__(layers, sharing)
        self._of_inputs: dict[str, RowsOrGram] = {}
        self._of_gradients: dict[str, RowsOrGram] = {}

    def add_input(self, name: str, a: Tensor) -> None:
        """Add the module's input at one use of a layer."""
        layer = self._layers[name]
        rows = self._input_rows(layer, a)
        # A copy in any case: the caller may write the next micro-batch into the same memory.
        rows = rows.clone() if layer.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self._of_inputs.setdefault(name, RowsOrGram()).add(rows)

    def _rescale_gradients(self, factor: float) -> None:
        for rows in self._of_gradients.values():
            rows.scale(factor)

    def add_gradient(self, name: str, g: Tensor) -> None:
        """Add the gradient by the module's output at one use of a layer."""
        layer = self._layers[name]
        self._of_gradients.setdefault(name, RowsOrGram()).add(self._gradient_rows(layer, g))

    def input_samples(self) -> dict[str, Sample]:
        """Layer → what A is made of, for the layers that were used. Consumes the sums."""
        found, self._of_inputs = self._of_inputs, {}
        return {name: rows.sample(1 / rows.n_rows) for name, rows in found.items()}

    def gradient_samples(self) -> dict[str, Sample]:
        """Layer → what G is made of, for the layers that were used. Consumes the sums."""
        found, self._of_gradients = self._of_gradients, {}
        scale = self._gradient_scale**2 / self.n_examples
        return {name: rows.sample(scale) for name, rows in found.items()}

    def input_covariances(self) -> dict[str, Tensor]:
        """Layer → A of this update. Consumes the sums."""
        return {name: sample.covariance() for name, sample in self.input_samples().items()}

    def gradient_covariances(self) -> dict[str, Tensor]:
        """Layer → G of this update. Consumes the sums."""
        return {name: sample.covariance() for name, sample in self.gradient_samples().items()}
