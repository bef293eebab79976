"""Batches by shuffled indices: the data sit on the device, nothing is loaded."""

from __future__ import annotations

import math

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
    """How an update's examples are cut into micro-batches.

    With ``full_batch_at`` = k₁ the effective batch grows from its first size m₁ to the training set S:
    m_k = min(m₁·exp((k − 1)/b), |S|) in the k-th update, b such that m_k₁ = |S| (Martens, Grosse 2015, section 13,
    where k₁ = 500). The micro-batches grow with it unless ``batch_size`` and ``effective_batch_size`` are both given.

    Args:
        batch_size: examples in one forward pass; defaults to ``effective_batch_size``.
        effective_batch_size: examples behind one update; defaults to ``batch_size``.
        accumulation: micro-batches behind one update, in place of ``effective_batch_size``.
        full_batch_at: the update that uses the entire training set for the first time; None for a constant size.
        micro_limit: most examples in one forward pass, whatever the sizes say; None for no limit.
        n_train: size of the training set.

    Raises:
        ValueError: if neither size is given, one is below 1, more examples are asked for than there are, or
            ``full_batch_at`` is below 2, ``micro_limit`` or ``accumulation`` below 1, or ``accumulation`` stands beside
            ``effective_batch_size`` or without ``batch_size``.
    """

    def __init__(
        self,
        *,
        batch_size: int | None = None,
        effective_batch_size: int | None = None,
        accumulation: int | None = None,
        full_batch_at: int | None = None,
        micro_limit: int | None = None,
        n_train: int,
    ) -> None:
        if accumulation is not None:
            if batch_size is None or effective_batch_size is not None:
                raise ValueError("accumulation needs batch_size, and effective_batch_size not to be given")
            if accumulation < 1:
                raise ValueError(f"accumulation must be at least 1 (micro-batch), got {accumulation}")
            effective_batch_size = accumulation * batch_size
        effective = effective_batch_size if effective_batch_size is not None else batch_size
        if effective is None:
            raise ValueError("batch_size or effective_batch_size must be given")
        micro = batch_size if batch_size is not None else effective
        for name, value in (("batch_size", micro), ("effective_batch_size", effective)):
            if not 1 <= value <= n_train:
                raise ValueError(f"{name} must be between 1 and the {n_train} training examples, got {value}")
        if full_batch_at is not None and full_batch_at < 2:
            raise ValueError(f"full_batch_at must be at least 2 (updates), got {full_batch_at}")
        if micro_limit is not None and micro_limit < 1:
            raise ValueError(f"micro_limit must be at least 1, got {micro_limit}")
        self._micro_limit = n_train if micro_limit is None else micro_limit
        self.micro = min(micro, effective, self._micro_limit)
        self._first, self._n_train = effective, n_train
        self._full_batch_at = full_batch_at
        self._fixed_micro = batch_size is not None and effective_batch_size is not None

    def effective(self, n_updates: int) -> int:
        """Examples behind the update that follows ``n_updates`` others."""
        if self._full_batch_at is None:
            return self._first
        share = min(n_updates / (self._full_batch_at - 1), 1.0)
        return round(self._first * math.exp(share * math.log(self._n_train / self._first)))

    def of_update(self, n_updates: int) -> list[int]:
        """Micro-batches of the update that follows ``n_updates`` others; the last may be smaller."""
        effective = self.effective(n_updates)
        grows = self._full_batch_at is not None and not self._fixed_micro
        micro = min(effective, self._micro_limit) if grows else self.micro
        full, rest = divmod(effective, micro)
        return [micro] * full + ([rest] if rest else [])
