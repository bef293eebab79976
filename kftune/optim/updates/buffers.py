"""Running statistics of normalisation layers, which a forward pass changes before its update is sure."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class RunningStatistics:
    """Remembers the running statistics of a model's normalisation layers, and puts them back.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
        self._copies: list[tuple[list[Tensor], list[Tensor]]] = []

    def remember(self) -> None:
        """Copy those of the layers in training mode: others do not change."""
        groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for module in self._modules:
            if module.training:
                for buffer in (module.running_mean, module.running_var, module.num_batches_tracked):
                    if buffer is not None:
                        groups.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        kept = [copies for _, copies in self._copies]
        self._copies = []
        for i, buffers in enumerate(groups.values()):
            fits = i < len(kept) and [(c.shape, c.dtype, c.device) for c in kept[i]] == [
                (b.shape, b.dtype, b.device) for b in buffers
            ]
            copies = kept[i] if fits else [torch.empty_like(buffer) for buffer in buffers]
            torch._foreach_copy_(copies, buffers)
            self._copies.append((buffers, copies))

    def restore(self) -> None:
        """Be as when they were remembered."""
        with torch.no_grad():
            for buffers, copies in self._copies:
                torch._foreach_copy_(buffers, copies)
