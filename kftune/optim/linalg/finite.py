"""Whether numbers are finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def all_finite(tensors: list[Tensor], *, squares: bool = False) -> bool:
    """Whether no entry of any tensor is inf or nan, by one host synchronisation for all of them.

    Args:
        tensors: at least one.
        squares: whether the entries' squares must be finite, too.
    """
    # The Euclidean norm is 15 times faster than the largest magnitude on a CPU, but can overflow where no entry does.
    for ord_ in (2.0, math.inf):
        if ord_ == math.inf:
            tensors = [tensor for tensor in tensors if tensor.numel()]  # nothing has no largest entry
        norms = torch._foreach_norm(tensors, ord=ord_)
        stacked = torch.stack([norm.to(norms[0]) for norm in norms])
        if bool(torch.isfinite(stacked.square() if squares else stacked).all()):
            return True
    return False
