"""Batches by shuffled indices: the data sit on the device, nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["BatchSizes", "ShuffledIndices"]


class ShuffledIndices:
    """An endless stream of permutations of ``range(n)``, cut into batches of any size.

    Every example is used once before any is used again; a batch may span two permutations. The order depends on the
    seed alone, not on the device or the batch size.
    """

    def __init__(self, n: int, *, seed: int, device: torch.device) -> None:
        self._n = n
        self._generator = torch.Generator().manual_seed(seed)
        self._device = device
        self._rest = torch.empty(0, dtype=torch.int64, device=device)

    def take(self, k: int) -> Tensor:
        """The next ``k`` indices, on the device."""
        while len(self._rest) < k:
            permutation = torch.randperm(self._n, generator=self._generator).to(self._device)
            self._rest = torch.cat([self._rest, permutation])
        batch, self._rest = self._rest[:k], self._rest[k:]
        return batch


class BatchSizes:
    """How one update's examples are cut into micro-batches.

    Args:
        batch_size: examples in one forward pass; defaults to ``effective_batch_size``.
        effective_batch_size: examples behind one update; defaults to ``batch_size``.
        n_train: size of the training set.

    Raises:
        ValueError: if neither is given, one is below 1, or more examples are asked for than there are.
    """

    def __init__(self, *, batch_size: int | None, effective_batch_size: int | None, n_train: int) -> None:
        effective = effective_batch_size if effective_batch_size is not None else batch_size
        if effective is None:
            raise ValueError("batch_size or effective_batch_size must be given")
        micro = batch_size if batch_size is not None else effective
        for name, value in (("batch_size", micro), ("effective_batch_size", effective)):
            if not 1 <= value <= n_train:
                raise ValueError(f"{name} must be between 1 and the {n_train} training examples, got {value}")
        self.effective = effective
        self.micro = min(micro, effective)

    def __iter__(self) -> Iterator[int]:
        """Sizes of one update's micro-batches; the last may be smaller."""
        full, rest = divmod(self.effective, self.micro)
        yield from [self.micro] * full
        if rest:
            yield rest
