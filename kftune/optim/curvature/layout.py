"""Where the classes of a categorical output are: the gradient of cross-entropy, p − e_y, adds up to zero over them."""

from __future__ import annotations

import torch
from torch import Tensor

_ZERO = 1e-2  # relative to the magnitudes that are added up; half precision leaves 1e-3


class ClassDimension:
    """Sees to it that classes are in the last dimension of outputs with positions, by the loss' own gradient.

    torch's ``cross_entropy`` takes (N, C, T), the likelihood here (N, T, C), and no shape tells them apart. The
    gradient passes the output in the backward pass that is made anyway; every shape is looked at once.
    """

    def __init__(self) -> None:
        self._judged: set[torch.Size] = set()
        self._shape = torch.Size()
        self._sums: list[Tensor] = []

    def watch(self, output: Tensor) -> None:
        """Take down the next gradient of an output of a shape that was not judged yet."""
        self._sums, self._shape = [], output.shape[1:]
        if output.dim() < 3 or not output.requires_grad or self._shape in self._judged:
            return
        sums = self._sums

        def take(g: Tensor) -> None:
            added = [g.sum(dim=dim).abs().sum() for dim in range(1, g.dim())]
            sums[:] = [torch.stack([*added, g.abs().sum()])]

        output.register_hook(take)  # type: ignore[no-untyped-call]  # torch does not annotate it

    def check(self) -> None:
        """Judge what was taken down.

        Raises:
            RuntimeError: the classes are in another dimension.
        """
        if not self._sums:  # the loss is made of something else than what the closure returns
            return
        *sums, total = self._sums.pop().tolist()
        if total == 0:
            return
        shares = [own / total for own in sums]
        least = min(range(len(shares)), key=shares.__getitem__)
        if shares[least] < _ZERO < shares[-1] and shares[-1] > 10 * shares[least]:
            raise RuntimeError(
                "likelihood 'categorical' takes the output's last dimension for classes, and the loss' gradient shows "
                f"them in dimension {least + 1} of (N, {', '.join(map(str, self._shape))}): return "
                f"(loss, output.movedim({least + 1}, -1)) from the closure"
            )
        self._judged.add(self._shape)
