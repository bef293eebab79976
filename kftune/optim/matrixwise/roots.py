"""Inverse roots and eigenbases of Shampoo's factors, as pure numerics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kftune.errors import CurvatureError
from kftune.optim.linalg.decompositions import eigendecompositions
from kftune.optim.linalg.finite import all_finite
from kftune.optim.linalg.gram import symmetrize_


def inverse_roots(
    names: Sequence[str], factors: Sequence[Tensor], *, damping: float, exponents: Sequence[float]
) -> list[Tensor]:
    """(M + damping·λ_max(M)·I)^(−exponent) by eigendecomposition; I for M = 0.

    Args:
        names: what each factor is, for errors.
        factors: each (d, d), symmetric positive semi-definite; only lower triangles are read.
        damping: relative to the largest eigenvalue.
        exponents: one per factor.

    Raises:
        CurvatureError: where a factor has no eigendecomposition in float64 either, or is not finite.
    """
    roots = []
    for (values, vectors), exponent in zip(eigendecompositions(names, factors), exponents, strict=True):
        damped = values + damping * values.max()
        scales = torch.where(damped > 0, damped, torch.ones_like(damped)).pow(-exponent)
        roots.append((vectors * scales) @ vectors.T)
    return roots


def eigenbases(names: Sequence[str], factors: Sequence[Tensor]) -> list[Tensor]:
    """Orthonormal eigenvectors in columns, largest eigenvalue first.

    Args:
        names: what each factor is, for errors.
        factors: each (d, d), symmetric positive semi-definite; only lower triangles are read.

    Raises:
        CurvatureError: as :func:`inverse_roots`.
    """
    return [eigen.vectors.flip(1).contiguous() for eigen in eigendecompositions(names, factors)]


def iterated_bases(
    names: Sequence[str], factors: Sequence[Tensor], bases: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """One step of orthogonal iteration: the QR decomposition of MQ, Q's columns ordered by qᵀMq, largest first.

    Args:
        names: what each factor is, for errors.
        factors: M, each (d, d), symmetric positive semi-definite; only lower triangles are read.
        bases: Q, each (d, d), orthogonal.

    Returns:
        (new basis, order) per factor; the new column j continues the old column order[j].

    Raises:
        CurvatureError: where the result is not finite.
    """
    found = []
    for M, Q in zip(factors, bases, strict=True):
        product = symmetrize_(M.clone()) @ Q
        order = (Q * product).sum(dim=0).argsort(descending=True, stable=True)
        found.append((torch.linalg.qr(product[:, order]).Q, order))
    if not all_finite([basis for basis, _ in found]):
        bad = [name for name, (basis, _) in zip(names, found, strict=True) if not all_finite([basis])]
        raise CurvatureError(f"the {bad[0]} has no orthogonal basis: its product with the last one is not finite")
    return found
