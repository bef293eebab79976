"""Inverses of damped covariances by the rows they are made of, as pure numerics.

For Z of n rows, ZᵀZ = A or G (Sherman, Morrison, Woodbury; Tang et al. 2021, with Z = X/√N),

    (ZᵀZ + λI)⁻¹ = (1/λ)[I − Zᵀ(ZZᵀ + λI)⁻¹Z]   and   Z(ZᵀZ + λI)⁻¹ = (ZZᵀ + λI)⁻¹Z:

an n × n matrix is factorised in the place of a d × d one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from kftune.optim.curvature.rows_or_gram import Sample
from kftune.optim.linalg.decompositions import damped_choleskys, solve_rows


def by_rows(n: int, d: int, *, once: bool) -> bool:
    """Whether n rows serve better than a d × d matrix.

    A kept inverse is applied to a vector in 2d² operations, kept rows in 4nd: they pay up to n = d/2.
    """
    return n < d if once else 2 * n < d


def flops_of_a_row(n: int, d: int, *, once: bool) -> float:
    """Operations of :func:`apply` to one row, where the sample has n."""
    return (2.0 * n * (2 * d + n * once)) if by_rows(n, d, once=once) else 2.0 * d**2


Side: TypeAlias = dict[str, Tensor]
"""One side's inverse: ``inverse``, (d, d); or ``rows`` Z, ``solved`` (ZZᵀ + λI)⁻¹Z and ``damping`` λ. Where it is used
once, ``cholesky`` of ZᵀZ + λI; or ``rows``, ``gram_cholesky`` of ZZᵀ + λI and ``damping``."""


def reduced(sample: Sample, *, once: bool) -> tuple[Tensor, bool]:
    """(the matrix to factorise, whether it is ZZᵀ)"""
    if sample.is_covariance or not by_rows(len(sample.matrix), sample.d, once=once):
        return sample.covariance(), False
    return sample.matrix @ sample.matrix.T, True


def make_sides(
    names: Sequence[str],
    samples: Sequence[Sample],
    matrices: Sequence[tuple[Tensor, bool]],
    dampings: Sequence[Tensor],
    *,
    once: bool,
) -> list[Side]:
    """(ZᵀZ + λI)⁻¹ of several sides, in the form that :func:`apply` needs.

    Args:
        names: what each covariance is, for errors.
        samples: what they are made of.
        matrices: :func:`reduced` of the samples.
        dampings: λ of each, scalars on the device.
        once: whether they will be used for a single update.

    Raises:
        CurvatureError: if a matrix has no Cholesky factor.
    """
    factors = damped_choleskys(names, [matrix for matrix, _ in matrices], dampings)
    sides: list[Side] = []
    for sample, (_, is_gram), damping, factor in zip(samples, matrices, dampings, factors, strict=True):
        if is_gram and once:
            sides.append({"rows": sample.matrix, "gram_cholesky": factor, "damping": damping})
        elif is_gram:
            solved = torch.cholesky_solve(sample.matrix, factor)
            sides.append({"rows": sample.matrix, "solved": solved, "damping": damping})
        else:
            sides.append({"cholesky": factor} if once else {"inverse": torch.cholesky_inverse(factor)})
    return sides


def apply(vectors: Tensor, side: Mapping[str, Tensor], *, own: bool = False) -> Tensor:
    """X(ZᵀZ + λI)⁻¹ for the rows X, (m, d).

    Args:
        vectors: X.
        side: see :data:`Side`.
        own: whether X is a multiple of Z.
    """
    if "inverse" in side:
        return vectors @ side["inverse"]
    if "cholesky" in side:
        return solve_rows(vectors, side["cholesky"])
    if "gram_cholesky" in side and own:
        return torch.cholesky_solve(vectors, side["gram_cholesky"])
    products = vectors @ side["rows"].T
    if "solved" in side:
        inside = products @ side["solved"]
    else:
        inside = solve_rows(products, side["gram_cholesky"]) @ side["rows"]
    return (vectors - inside).div_(side["damping"])
