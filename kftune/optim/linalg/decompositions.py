"""Inverses and eigendecompositions of damped factors that fail loudly.

Each tries the factors' own precision, then float64, then raises :class:`~kftune.errors.CurvatureError` with the layer's
name and numbers. All layers are handled together: the host waits for the device once, and a GPU is given stacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kftune.errors import CurvatureError

_SMALL = 256  # side of the largest matrices that are stacked on a GPU


class Eigen(NamedTuple):
    """M = vectors · diag(values) · vectorsᵀ, values not negative."""

    values: Tensor
    vectors: Tensor


def damped_inverses(names: Sequence[str], matrices: Sequence[Tensor], dampings: Sequence[Tensor]) -> list[Tensor]:
    """(M + λI)⁻¹ by Cholesky for several symmetric positive semi-definite M, each with its own λ.

    Args:
        names: what each matrix is, for errors, e.g. ``"input covariance of layer 'encoder.0'"``.
        matrices: each (d, d); only lower triangles are read.
        dampings: scalars on the matrices' device.

    Returns:
        Full symmetric inverses in the matrices' precision.

    Raises:
        CurvatureError: where even float64 finds no Cholesky factor, or a matrix is not finite.
    """
    factors = _choleskys(names, matrices, dampings)
    inverses = _stack_by_stack(factors, lambda stack, _: (torch.cholesky_inverse(stack),))
    return [inverse.to(matrix.dtype) for (inverse,), matrix in zip(inverses, matrices, strict=True)]


def damped_choleskys(names: Sequence[str], matrices: Sequence[Tensor], dampings: Sequence[Tensor]) -> list[Tensor]:
    """Lower Cholesky factors of M + λI: cheaper than inverses where they would be used once.

    Arguments and errors as :func:`damped_inverses`.
    """
    factors = _choleskys(names, matrices, dampings)
    return [f.to(matrix.dtype) for f, matrix in zip(factors, matrices, strict=True)]


def _choleskys(names: Sequence[str], matrices: Sequence[Tensor], dampings: Sequence[Tensor]) -> list[Tensor]:
    """Factors in the matrices' precision, or in float64 where that fails."""
    tried = _stack_by_stack(
        matrices, lambda stack, members: _try_choleskys(stack, torch.stack([dampings[i] for i in members]))
    )
    factors = [factor for factor, _ in tried]
    # Before any use: an inversion raises an error of its own on a factor with a zero.
    if tried and bool(torch.stack([bad for _, bad in tried]).any()):
        for i, (_, bad) in enumerate(tried):
            if bool(bad):
                factors[i] = _cholesky_in_float64(names[i], matrices[i], dampings[i])
    return factors


def _cholesky_in_float64(name: str, matrix: Tensor, damping: Tensor) -> Tensor:
    factor, bad = _try_cholesky(matrix.double(), damping.double())
    if bool(bad):
        what = f"{_describe(name, matrix)} cannot be inverted with damping {damping.item():.3g} added"
        raise CurvatureError(what + _cause(matrix))
    return factor


def ridged_cholesky(names: Sequence[str], matrices: Sequence[Tensor], ridge: float) -> list[Tensor]:
    """Lower Cholesky factors of M + rI with the smallest r of ridge, 10·ridge, … that permits one.

    A factor that float32 cannot find at ``ridge`` is tried in float64 before r grows; all come back in the matrices'
    precision.

    Args:
        names: what each matrix is, for errors.
        matrices: each (d, d), symmetric positive semi-definite up to rounding.
        ridge: first r; 0 is followed by float64's resolution.

    Raises:
        CurvatureError: where r has reached the mean of the diagonal, or a matrix is not finite.
    """
    tried = _stack_by_stack(
        matrices, lambda stack, members: _try_choleskys(stack, stack.new_full((len(members),), ridge))
    )
    factors = [factor for factor, _ in tried]
    if tried and bool(torch.stack([bad for _, bad in tried]).any()):
        for i, (_, bad) in enumerate(tried):
            if bool(bad):
                factors[i] = _growing_ridge(names[i], matrices[i], ridge)
    return factors


def _growing_ridge(name: str, matrix: Tensor, ridge: float) -> Tensor:
    exact, scale = matrix.double(), matrix.diagonal().mean().item()
    r: float = ridge
    while r < scale:
        factor, bad = _try_cholesky(exact, exact.new_full((), r))
        if not bool(bad):
            return factor.to(matrix.dtype)
        r = max(10 * r, 2.0**-52)
    what = f"{_describe(name, matrix)} has no Cholesky factor with any ridge below that mean"
    raise CurvatureError(what + _cause(matrix))


def noisy_inverses(
    names: Sequence[str],
    matrices: Sequence[Tensor],
    noise: float,
    *,
    noisy: Sequence[int],
    generator: torch.Generator,
) -> list[Tensor]:
    """Inverses of matrices as they are, by LU factors in their own precision; some with noise added.

    Args:
        names: what each matrix is, for errors.
        matrices: each (d, d).
        noise: every entry of the noise is drawn from [0, noise).
        noisy: places of the matrices that get it anyway; others get it where they are singular.
        generator: of the noise, on the CPU.

    Raises:
        CurvatureError: where a matrix is singular with its noise too, or not finite.
    """

    def blurred(matrix: Tensor) -> Tensor:
        drawn = torch.rand(matrix.shape, generator=generator, dtype=matrix.dtype)
        return matrix + noise * drawn.to(matrix.device)

    tried = [torch.linalg.inv_ex(blurred(m) if i in noisy else m) for i, m in enumerate(matrices)]
    inverses = [inverse for inverse, _ in tried]
    if tried and bool(torch.stack([info for _, info in tried]).any()):
        for i, (_, info) in enumerate(tried):
            if info.item():
                inverses[i], still = torch.linalg.inv_ex(blurred(matrices[i]))
                if still.item():
                    raise CurvatureError(f"{_describe(names[i], matrices[i])} has no inverse")
    return inverses


def solve_rows(rows: Tensor, factor: Tensor) -> Tensor:
    """X(LLᵀ)⁻¹ for rows X, (n, d), and lower triangular L, (d, d)."""
    half = torch.linalg.solve_triangular(factor.T, rows, upper=True, left=False)
    solution: Tensor = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
    return solution


def solve_between(left: Tensor, V: Tensor, right: Tensor) -> Tensor:
    """(LLᵀ)⁻¹ V (RRᵀ)⁻¹ for lower triangular L and R: cheaper than inverses that would be used once."""
    half = torch.linalg.solve_triangular(left, solve_rows(V, right), upper=False)
    solution: Tensor = torch.linalg.solve_triangular(left.T, half, upper=True)
    return solution


def eigendecompositions(names: Sequence[str], matrices: Sequence[Tensor]) -> list[Eigen]:
    """Eigenvalues (clamped at 0) and eigenvectors of symmetric positive semi-definite matrices.

    Args:
        names: what each matrix is, for errors.
        matrices: each (d, d); only lower triangles are read.

    Raises:
        CurvatureError: where the iteration does not converge in float64 either, or a matrix is not finite.
    """
    return [_eigendecomposition(name, matrix) for name, matrix in zip(names, matrices, strict=True)]


def _eigendecomposition(name: str, matrix: Tensor) -> Eigen:
    for dtype in dict.fromkeys((matrix.dtype, torch.float64)):
        try:
            values, vectors = torch.linalg.eigh(matrix.to(dtype))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # torch documents but does not annotate it
            continue
        if math.isfinite(values.sum().item()):
            return Eigen(values.clamp_(min=0).to(matrix.dtype), vectors.to(matrix.dtype))
    raise CurvatureError(f"{_describe(name, matrix)} has no eigendecomposition{_cause(matrix)}")


def _stack_by_stack(
    matrices: Sequence[Tensor], what: Callable[[Tensor, list[int]], tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    """What a function of stacks (k, d, d), and of the places of their members, says of each matrix.

    On a GPU the small matrices of one shape make one stack: one after the other, they would leave it idle. Elsewhere,
    and for large ones, a stack only costs a copy, and each matrix is one of its own.
    """
    groups: dict[Any, list[int]] = {}
    for i, matrix in enumerate(matrices):
        kind = (matrix.shape, matrix.dtype, matrix.device)
        groups.setdefault(kind if _stacks_pay(matrix) else i, []).append(i)
    found: dict[int, tuple[Tensor, ...]] = {}
    for members in groups.values():
        stack = matrices[members[0]][None] if len(members) == 1 else torch.stack([matrices[i] for i in members])
        found |= zip(members, zip(*(part.unbind() for part in what(stack, members)), strict=True), strict=True)
    return [found[i] for i in range(len(matrices))]


def _stacks_pay(matrix: Tensor) -> bool:
    return matrix.device.type == "cuda" and len(matrix) <= _SMALL


def _try_choleskys(stack: Tensor, dampings: Tensor) -> tuple[Tensor, Tensor]:
    """(lower factors of M + λI, which of them are unusable) for a stack (k, d, d), without a synchronisation."""
    damped = stack.clone()
    diagonals = damped.diagonal(dim1=1, dim2=2)
    diagonals.add_(dampings[:, None])
    # The diagonal of a positive semi-definite matrix bounds its entries.
    finite = torch.isfinite(diagonals.sum(dim=1))
    factors, info = torch.linalg.cholesky_ex(damped)
    return factors, (info != 0) | ~finite


def _try_cholesky(matrix: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`_try_choleskys` of one."""
    factors, bad = _try_choleskys(matrix[None], damping[None])
    return factors[0], bad[0]


def _describe(name: str, matrix: Tensor) -> str:
    return f"the {name} ({len(matrix)} × {len(matrix)}, mean of the diagonal {matrix.diagonal().mean().item():.3g})"


def _cause(matrix: Tensor) -> str:
    """What is added to an error: averages are checked before they are made, so an inf or a nan is the batch's own."""
    return "" if math.isfinite(matrix.sum().item()) else "; it is not finite for this update's batch"
