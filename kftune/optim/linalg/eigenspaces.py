"""Eigenvectors that the matrix does not determine: those of (nearly) equal eigenvalues, a null space above all.

Any rotation of them is as good a basis, and rounding chooses one. What is averaged over such vectors is the same in
every basis of their space, so that it depends on the matrix alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

_GAP = 100  # eigenvalues above a null space are at least so many times those in it
_RESOLUTION = 16  # eigenvalues that differ by less, in units of eps·λ_max, count as equal; those of 0 come out within 4

Span: TypeAlias = tuple[int, int]
"""From, up to but not including: columns of eigenvectors whose eigenvalues count as equal."""


def resolution(dtype: torch.dtype) -> float:
    """The least difference of eigenvalues that means something, relative to the largest one."""
    return _RESOLUTION * torch.finfo(dtype).eps


def equal_spans(values: Tensor) -> list[Span]:
    """Spans of two or more eigenvalues that are equal up to rounding.

    Args:
        values: eigenvalues in ascending order, none negative. The host waits for them.
    """
    known = values.tolist()
    width = resolution(values.dtype) * known[-1] if known else 0.0
    spans, start = [], 0
    for end in range(1, len(known) + 1):
        if end == len(known) or known[end] - known[start] > width:
            if end - start > 1:
                spans.append((start, end))
            start = end
    return spans


def in_range(values: Sequence[float], dtype: torch.dtype) -> list[bool]:
    """Which of some eigenvalues (or other measures of them) are not those of a null space.

    A null space is what is zero up to rounding, with a gap above it. Where eigenvalues decay steadily into rounding,
    nothing says where it would begin, and there is none.

    Args:
        values: on the host, none negative, in any order.
        dtype: in which they were computed.
    """
    width = resolution(dtype) * max(values, default=0.0)
    found = [value > width for value in values]
    inside = [value for value, above in zip(values, found, strict=True) if not above]
    least = min((value for value, above in zip(values, found, strict=True) if above), default=math.inf)
    return found if inside and least >= _GAP * max(inside) else [True] * len(values)


def share_(tensor: Tensor, *spans: Sequence[Span]) -> None:
    """Replace what stands in a span by its mean, in place, dimension by dimension; nothing else is touched.

    Args:
        tensor: of any number of dimensions.
        spans: of each dimension, from the first on: rows, then columns of a matrix.
    """
    for dimension, known in enumerate(spans):
        for start, end in known:
            own = tensor.narrow(dimension, start, end - start)
            own.copy_(own.mean(dim=dimension, keepdim=True))
