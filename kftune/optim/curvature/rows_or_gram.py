"""Sums of outer products, kept as the rows they are made of as long as those are fewer than the sum's columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kftune.optim.linalg.gram import add_gram, symmetrize_
from kftune.optim.linalg.products import padded_zeros


class Sample(NamedTuple):
    """What A or G of one layer is made of.

    Attributes:
        matrix: Z, (n, d), or ZᵀZ itself, (d, d).
        is_covariance: which of them.
    """

    matrix: Tensor
    is_covariance: bool

    @property
    def d(self) -> int:
        """Side of A or G."""
        return self.matrix.shape[1]

    def covariance(self) -> Tensor:
        """A or G, (d, d)."""
        return self.matrix if self.is_covariance else self.matrix.T @ self.matrix


class RowsOrGram:
    """Σ x xᵀ over rows x, kept as the rows as long as there are fewer of them than columns."""

    def __init__(self) -> None:
        self.n_rows = 0
        self._rows: list[Tensor] = []
        self._gram: Tensor | None = None

    def add(self, rows: Tensor, *, kept: bool = False) -> None:
        """Add rows, (n, d); ``kept`` if they may change before the sum is asked for."""
        self.n_rows += len(rows)
        is_gram = self.n_rows >= rows.shape[1]
        self._rows.append(rows.clone() if kept and not is_gram else rows)
        if is_gram:
            if self._gram is None:
                self._gram = padded_zeros(rows.shape[1], rows.shape[1], like=rows)
            for part in self._rows:
                add_gram(self._gram, part)
            self._rows = []

    def scale(self, factor: float) -> None:
        """Make the sum that of rows ``factor`` times as long."""
        self._rows = [rows * factor for rows in self._rows]
        if self._gram is not None:
            self._gram.mul_(factor**2)

    def chain(self) -> tuple[Tensor, ...]:
        """Matrices whose product it is: (Xᵀ, X), or the matrix itself."""
        if self._gram is not None:
            return (symmetrize_(self._gram),)
        rows = torch.cat(self._rows)
        return rows.T, rows

    def sample(self, scale: float) -> Sample:
        """Of ``scale``·(the sum)."""
        if self._gram is not None:
            return Sample(symmetrize_(self._gram * scale), is_covariance=True)
        return Sample(torch.cat(self._rows) * scale**0.5, is_covariance=False)
