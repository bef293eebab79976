"""Kronecker factors as pure numerics: second moments, running averages, the trace ratio π. Conventions: the package."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 192  # rows of a strip of add_gram; 128 to 256 are equally fast
_TILE = 128  # rows and columns of what symmetrize_ transposes at a time
_CACHED = 512  # side of the largest matrix that symmetrize_ takes at once


def add_gram(total: Tensor, x: Tensor) -> None:
    """total += xᵀx, of which only the lower triangle is sure to be right (see :func:`symmetrize_`).

    On the CPU the product is taken in strips of the lower triangle, for up to 40% less time than a full product; a GPU
    is faster with one large product.

    Args:
        total: (d, d); may be a view with rows further apart.
        x: (n, d).
    """
    d = x.shape[1]
    if x.device.type != "cpu" or d <= 2 * _BLOCK:
        total.addmm_(x.T, x)
        return
    for start in range(0, d, _BLOCK):
        end = min(start + _BLOCK, d)
        total[start:, start:end].addmm_(x[:, start:].T, x[:, start:end])


def add_homogeneous_gram(total: Tensor, x: Tensor) -> None:
    """total += āᵀā for ā = [x, 1], lower triangle only as in :func:`add_gram`.

    Args:
        total: (d + 1, d + 1).
        x: (n, d).
    """
    d = x.shape[1]
    add_gram(total[:d, :d], x)
    total[d, :d] += x.sum(dim=0)
    total[d, d] += len(x)


def symmetrize_(matrix: Tensor) -> Tensor:
    """Copy the lower triangle to the upper one, in place."""
    if len(matrix) <= _CACHED:
        matrix.tril_()
        return matrix.add_(matrix.tril(-1).T)
    for start in range(0, len(matrix), _TILE):  # tile by tile, which stay in the cache while they are transposed
        end = start + _TILE
        matrix[start:end, end:] = matrix[end:, start:end].T
        corner = matrix[start:end, start:end]
        corner.copy_(corner.tril() + corner.tril(-1).T)
    return matrix


def decay_of(k: int, factor_decay: float) -> float:
    """Weight on the old value in the k-th statistics update (k = 1, 2, …): min(1 − 1/k, factor_decay).

    The plain mean at first, then an exponential average: no bias towards an initial value (K-FAC, section 5).
    """
    return min(1 - 1 / k, factor_decay)


def debiased_decay_of(k: int, factor_decay: float) -> float:
    """Weight on the old value that makes the average of k values one with weights m^(k−1), …, m, 1, normalised.

    It is m(1 − m^(k−1))/(1 − m^k), m = ``factor_decay``.
    """
    if factor_decay == 1.0:
        return 1 - 1 / k
    return factor_decay * (1 - factor_decay ** (k - 1)) / (1 - factor_decay**k)


def trace_ratio(A: Tensor, G: Tensor) -> Tensor:
    """π of factored Tikhonov damping: π² = (tr A/d_A)/(tr G/d_G); 1 where a trace is zero (K-FAC, section 6.3).

    Args:
        A: (d_A, d_A).
        G: (d_G, d_G).

    Returns:
        A scalar on the factors' device; nothing is synchronised.
    """
    return root_ratio(A.diagonal().mean(), G.diagonal().mean())


def root_ratio(mean_a: Tensor, mean_g: Tensor) -> Tensor:
    """√(mean_a/mean_g) of two scalars on a device; 1 where one is not positive."""
    usable = (mean_a > 0) & (mean_g > 0)
    # The roots first: the ratio itself can overflow in float32.
    return torch.where(usable, mean_a.sqrt() / mean_g.sqrt(), torch.ones_like(mean_a))
