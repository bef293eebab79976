"""Matrix products into rows that start on cache lines.

With a bias, A has an odd side, and on a CPU a product whose result has rows of odd length takes up to half as long
again: 500 × 1001 by 1001 × 1001 in float32 takes 20.6 ms on one thread of an AMD EPYC, and 14.1 ms where rows start
1008 apart. How far apart the rows of what is multiplied are does not matter: BLAS copies them anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

_LINE = 64  # bytes
_SMALL = 256  # columns below which the calls cost more than rows of odd length


def padded_zeros(rows: int, columns: int, *, like: Tensor) -> Tensor:
    """(rows, columns) of zeros of ``like``'s device and type, float32 at least.

    It is a view of storage in which rows start on cache lines.
    """
    dtype = precise(like.dtype)
    return like.new_zeros(rows, _padded(columns, dtype), dtype=dtype)[:, :columns]


def widest(tensors: Iterable[Tensor]) -> torch.dtype:
    """The least precise type that holds numbers of all tensors."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` of two matrices; a view of storage in which rows start on cache lines. Has no gradient."""
    columns = right.shape[1]
    stride = _padded(columns, right.dtype)
    if stride == columns:
        return left @ right
    result = right.new_empty(len(left), stride)[:, :columns]
    return torch.mm(left, right, out=result)


def precise(dtype: torch.dtype) -> torch.dtype:
    """The type in which curvature of numbers of this one is kept: float32 at least, which can be decomposed."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def _padded(columns: int, dtype: torch.dtype) -> int:
    """The least number of entries from ``columns`` on that fills cache lines; of few ``columns`` just these."""
    if columns < _SMALL:
        return columns
    per_line = _LINE // dtype.itemsize
    return -(-columns // per_line) * per_line
