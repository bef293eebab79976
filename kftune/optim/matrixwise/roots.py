"""Inverse roots and eigenbases of Shampoo's factors, as pure numerics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kftune.errors import CurvatureError
from kftune.optim.linalg.decompositions import eigendecompositions
from kftune.optim.linalg.eigenspaces import in_range
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


class EigenBasis(NamedTuple):
    """Orthonormal eigenvectors of a factor.

    Attributes:
        vectors: in columns, (d, d); largest eigenvalue first.
        rank: the columns from here on span a null space, of which any basis is as good; d without one.
    """

    vectors: Tensor
    rank: int


def eigenbases(names: Sequence[str], factors: Sequence[Tensor]) -> list[EigenBasis]:
    """The eigenvectors of some factors.

    Args:
        names: what each factor is, for errors.
        factors: each (d, d), symmetric positive semi-definite; only lower triangles are read.

    Raises:
        CurvatureError: as :func:`inverse_roots`.
    """
    return [
        EigenBasis(vectors.flip(1).contiguous(), sum(in_range(values.tolist(), values.dtype)))
        for values, vectors in eigendecompositions(names, factors)
    ]


def iterated_bases(
    names: Sequence[str], factors: Sequence[Tensor], bases: Sequence[EigenBasis]
) -> list[tuple[EigenBasis, Tensor]]:
    """One step of orthogonal iteration: the QR decomposition of MQ, Q's columns ordered by qᵀMq, largest first.

    Columns that spanned a null space are first replaced by the eigenvectors of M in that space. Otherwise what becomes
    of an arbitrary basis would be arbitrary.

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
    for name, M, Q in zip(names, factors, bases, strict=True):
        product, sizes = _products(name, symmetrize_(M.clone()), Q)
        order = sizes.argsort(descending=True, stable=True)
        found.append((*torch.linalg.qr(product[:, order]), order, product))
    if not all_finite([Q for Q, _, _, _ in found]):
        bad = [name for name, (Q, _, _, _) in zip(names, found, strict=True) if not all_finite([Q])]
        raise CurvatureError(f"the {bad[0]} has no orthogonal basis: its product with the last one is not finite")
    # What a column adds to the columns before it, for all factors in one copy to the host.
    added = torch.cat([R.diagonal().abs().double().to(found[0][0].device) for _, R, _, _ in found]).tolist()
    renewed = []
    for Q, _, order, product in found:
        own, added = added[: len(Q)], added[len(Q) :]
        renewed.append(_with_rank(Q, order, product, in_range(own, Q.dtype)))
    return renewed


def _with_rank(Q: Tensor, order: Tensor, product: Tensor, adds: list[bool]) -> tuple[EigenBasis, Tensor]:
    """(basis, order) where some columns of QR's Q add nothing to those before them: these go to the end."""
    rank = sum(adds)
    if all(adds[:rank]):
        return EigenBasis(Q, rank), order
    places = sorted(range(len(adds)), key=lambda i: not adds[i])
    moved = order[torch.tensor(places, device=order.device)]
    return EigenBasis(torch.linalg.qr(product[:, moved]).Q, rank), moved


def _products(name: str, M: Tensor, basis: EigenBasis) -> tuple[Tensor, Tensor]:
    """(MQ, qᵀMq of every column q)"""
    Q, rank = basis
    product = M @ Q
    sizes = (Q * product).sum(dim=0)
    if rank < len(Q):
        within = Q[:, rank:].T @ product[:, rank:]
        (eigen,) = eigendecompositions([name], [within])
        product[:, rank:] = product[:, rank:] @ eigen.vectors
        sizes[rank:] = eigen.values
    return product, sizes
