"""Products with A ⊗ G that form A and G only where they are smaller than the rows they are made of; pure numerics."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kftune.optim.curvature.rows import Rows
from kftune.optim.curvature.rows_or_gram import RowsOrGram
from kftune.optim.curvature.statistics import WeightSharing


class KroneckerRows:
    """Gathers ā and g of an update's micro-batches for products with (A ⊗ G) vec(X) = vec(GXA).

    A = mean āāᵀ, G = (1/N) Σ ggᵀ. With ``expand``, the positions of an example (and all uses of its module) are rows
    of their own, and A is the mean over all of them; with ``reduce``, ā is averaged and g summed over the positions of
    each use first. So they are those of :class:`~kftune.optim.curvature.statistics.Statistics`.
    """

    def __init__(self, sharing: WeightSharing) -> None:
        self._reduce = sharing == "reduce"
        self._inputs: dict[str, RowsOrGram] = {}
        self._gradients: dict[str, RowsOrGram] = {}
        self._in_batch: set[str] = set()
        self._n_examples = 0

    def begin_batch(self) -> None:
        """What is added from here on belongs to another micro-batch."""
        self._in_batch = set()

    def add(self, rows: Mapping[str, Rows], *, kept: bool = True) -> None:
        """Add one direction of all layers of the micro-batch; ā counts once for all directions.

        Args:
            rows: layer → what passed it.
            kept: whether :meth:`result` is used after the call of the optimizer that this is in: ā may be a view of the
                batch itself, which may be filled anew.
        """
        first = not self._in_batch
        for name, found in rows.items():
            inputs, gradients = found.inputs, found.gradients
            if first:
                self._n_examples += len(inputs)
                first = False
            if name not in self._in_batch:
                own = _reduced(inputs, found.uses, torch.mean) if self._reduce else inputs.flatten(0, 1)
                self._inputs.setdefault(name, RowsOrGram()).add(own, kept=kept)
            own = _reduced(gradients, found.uses, torch.sum) if self._reduce else gradients.flatten(0, 1)
            self._gradients.setdefault(name, RowsOrGram()).add(own)
        self._in_batch.update(rows)

    def result(self) -> dict[str, KroneckerProduct]:
        """Layer → its A ⊗ G."""
        return {
            name: KroneckerProduct(
                self._gradients[name].chain(), inputs.chain(), 1 / (self._n_examples * inputs.n_rows)
            )
            for name, inputs in self._inputs.items()
        }


def _reduced(rows: Tensor, uses: tuple[int, ...], over: Callable[..., Tensor]) -> Tensor:
    """(N, T, d) → one row for each example and use of the module, (N · uses, d)."""
    if not uses:
        return over(rows, dim=1)
    return torch.cat([over(own, dim=1) for own in torch.split(rows, list(uses), dim=1)])


class KroneckerProduct:
    """scale·(the product of ``left``)·X·(the product of ``right``), in the order that takes the fewest operations."""

    def __init__(self, left: tuple[Tensor, ...], right: tuple[Tensor, ...], scale: float) -> None:
        self._left, self._right, self._scale = left, right, scale

    def fisher_product(self, X: Tensor) -> Tensor:
        """GXA for X of (d_G, d_A)."""
        product: Tensor = torch.linalg.multi_dot([*self._left, X, *self._right])
        return product.mul_(self._scale)
