"""Conjugate gradients for several independent systems at once, with one host synchronisation per iteration for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from kftune.errors import CurvatureError

Operator: TypeAlias = Callable[[Tensor], Tensor]
"""X → FX for a symmetric positive definite F."""


class Solutions(NamedTuple):
    """What :func:`conjugate_gradients` found, system by system.

    Attributes:
        X: approximate solutions.
        iterations: how many each took.
    """

    X: list[Tensor]
    iterations: list[int]


def conjugate_gradients(
    names: Sequence[str],
    operators: Sequence[Operator],
    targets: Sequence[Tensor],
    starts: Sequence[Tensor | None],
    *,
    iterations: int,
    tolerance: float,
) -> Solutions:
    """Solve F_k X_k = B_k for every k (Hestenes, Stiefel 1952).

    All systems advance together; one that has converged is left as it is, as is one whose ⟨D, FD⟩ is not positive in
    a direction D of the search: rounding has used up what its residual says.

    Args:
        names: of the systems, for errors.
        operators: the F_k.
        targets: the B_k, tensors of any shape.
        starts: where to start, or None for zero. Of its multiples the one nearest to the solution in the norm of F is
            taken, so that no start is worse than zero.
        iterations: largest number of iterations, one product with F_k each; a start takes one more.
        tolerance: stop at ‖B − FX‖/‖B‖ ≤ this.

    Raises:
        CurvatureError: if a product is not finite.
    """
    X, R = _start(operators, targets, starts)
    n_iterations = [0] * len(X)
    square = _products(R, R)
    limit = _products(targets, targets) * tolerance**2
    systems = list(range(len(X)))  # that go on
    D = [torch.zeros_like(r) for r in R]
    ratio = torch.zeros_like(square)
    usable, finite = square > limit, torch.isfinite(square)
    for _ in range(iterations):
        if not systems:
            break
        keep = _check([names[k] for k in systems], usable, finite)
        if not all(keep):
            systems = list(compress(systems, keep))
            R, D = list(compress(R, keep)), list(compress(D, keep))
            kept = [i for i, goes_on in enumerate(keep) if goes_on]  # indices do not wait for the device, a mask does
            square, limit, ratio = torch.stack([square, limit, ratio])[:, kept].unbind()
            if not systems:
                break
        for d, r, beta in zip(D, R, ratio.unbind(), strict=True):
            d.mul_(beta).add_(r)
        FD = [operators[k](d) for k, d in zip(systems, D, strict=True)]
        curvature = _products(D, FD)
        usable = curvature > 0
        step = torch.where(usable, square / curvature, 0.0)
        torch._foreach_addcmul_([X[k] for k in systems], D, list(step.unbind()))
        torch._foreach_addcmul_(R, FD, list((-step).unbind()))
        for k in systems:
            n_iterations[k] += 1
        previous, square = square, _products(R, R)
        ratio = square / previous
        finite = torch.isfinite(curvature) & torch.isfinite(square)
        usable &= square > limit
    if systems:
        _check([names[k] for k in systems], usable, finite)
    return Solutions(X, n_iterations)


def _check(names: Sequence[str], usable: Tensor, finite: Tensor) -> list[bool]:
    """Which systems go on."""
    keep, fine = torch.stack([usable, finite]).tolist()
    if not all(fine):
        broken = ", ".join(repr(name) for name, good in zip(names, fine, strict=True) if not good)
        raise CurvatureError(f"products with the curvature of layer {broken} are not finite")
    found: list[bool] = keep
    return found


def _start(
    operators: Sequence[Operator], targets: Sequence[Tensor], starts: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor]]:
    """(X, B − FX) for the best multiples of the starts."""
    X = [torch.zeros_like(B, memory_format=torch.contiguous_format) for B in targets]
    R = [B.clone(memory_format=torch.contiguous_format) for B in targets]
    for k, start in enumerate(starts):
        if start is not None:
            product = operators[k](start)
            curvature = torch.sum(start * product)
            scale = torch.where(curvature > 0, torch.sum(start * targets[k]) / curvature, 0.0)
            X[k].addcmul_(start, scale)
            R[k].addcmul_(product, -scale)
    return X, R


def _products(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """⟨x_k, y_k⟩ for every k, one vector."""
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(xs, ys, strict=True)])
