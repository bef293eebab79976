"""A block-tridiagonal inverse for a chain of layers (Martens, Grosse 2015, section 4.3).

For layers 1, …, ℓ in the order of the chain, with ā_i the input and g_i the output's gradient of layer i:

* A_i = mean ā_iā_iᵀ and G_i = mean g_ig_iᵀ, with damping on their diagonals from here on;
* A_{i,i+1} = mean ā_iā_{i+1}ᵀ and G_{i,i+1} = mean g_ig_{i+1}ᵀ, the cross-moments, without damping.

(The paper's Ā_{i−1,i−1} is this A_i: the input of layer i is numbered as layer i.) With Ψᴬ_i = A_{i,i+1}A_{i+1}⁻¹ and
Ψᴳ_i = G_{i,i+1}G_{i+1}⁻¹, block i depends on block i + 1 by Ψ_i = Ψᴬ_i ⊗ Ψᴳ_i, and what remains of it is

    Σ_i = A_i ⊗ G_i − (Ψᴬ_iA_{i+1}Ψᴬ_iᵀ) ⊗ (Ψᴳ_iG_{i+1}Ψᴳ_iᵀ)        Σ_ℓ = A_ℓ ⊗ G_ℓ.

F̂⁻¹ = ΞᵀΛΞ, with Ξ unit block-bidiagonal (−Ψ_i beside the diagonal) and Λ = diag(Σ_1⁻¹, …, Σ_ℓ⁻¹), is the inverse of the
matrix that has A_i ⊗ G_i and A_{i,i+1} ⊗ G_{i,i+1} as its tridiagonal blocks and an inverse without any others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kftune.optim.linalg.decompositions import damped_choleskys, eigendecompositions, solve_rows
from kftune.optim.linalg.products import widest
from kftune.optim.preconditioning.damping import split_damping


class Moments(NamedTuple):
    """What the statistics of one layer are.

    Attributes:
        name: of the layer, for errors.
        A: (d_A, d_A).
        G: (d_G, d_G).
        damping: λ.
    """

    name: str
    A: Tensor
    G: Tensor
    damping: float


class Cross(NamedTuple):
    """What the statistics of a layer and the next one are.

    Attributes:
        A: A_{i,i+1}, (d_A, the next layer's d_A).
        G: G_{i,i+1}, (d_G, the next layer's d_G).
    """

    A: Tensor
    G: Tensor


class Link(NamedTuple):
    """What F̂⁻¹ needs of one layer but the last.

    Attributes:
        A_regression: Ψᴬ, (d_A, the next layer's d_A).
        G_regression: Ψᴳ, (d_G, the next layer's d_G).
        A_basis: K₁ with K₁ᵀAK₁ = I and K₁ᵀ(ΨᴬA'Ψᴬᵀ)K₁ = diag(A_values), A' the next layer's.
        G_basis: K₂, likewise.
        A_values: s₁ ∈ [0, 1).
        G_values: s₂ ∈ [0, 1).
    """

    A_regression: Tensor
    G_regression: Tensor
    A_basis: Tensor
    G_basis: Tensor
    A_values: Tensor
    G_values: Tensor


class End(NamedTuple):
    """What it needs of the last layer: the damped inverses."""

    A_inverse: Tensor
    G_inverse: Tensor


def invert(chain: Sequence[Moments], crosses: Sequence[Cross]) -> tuple[list[Link], End]:
    """F̂⁻¹ in parts, all in the most precise type of the layers'; every A and G gets factored Tikhonov damping first.

    Args:
        chain: the layers, at least one.
        crosses: of each but the last with the next.

    Raises:
        CurvatureError: a factor cannot be inverted or decomposed.
    """
    names = [f"{side} covariance of layer {own.name!r}" for own in chain for side in ("input", "gradient")]
    dtype = widest(matrix for own in chain for matrix in (own.A, own.G))
    matrices = [matrix.to(dtype) for own in chain for matrix in (own.A, own.G)]
    crosses = [Cross(cross.A.to(dtype), cross.G.to(dtype)) for cross in crosses]
    dampings = [part for own in chain for part in split_damping(own.A, own.G, own.damping, "factored")]
    factors = damped_choleskys(names, matrices, dampings)
    links = []
    for i, (own, cross) in enumerate(zip(chain, crosses, strict=False)):
        of_A, of_G, next_of_A, next_of_G = factors[2 * i : 2 * i + 4]
        A_regression, A_basis, A_values = _condition(f"input of layer {own.name!r}", cross.A, of_A, next_of_A)
        G_regression, G_basis, G_values = _condition(f"gradient of layer {own.name!r}", cross.G, of_G, next_of_G)
        links.append(Link(A_regression, G_regression, A_basis, G_basis, A_values, G_values))
    return links, End(torch.cholesky_inverse(factors[-2]), torch.cholesky_inverse(factors[-1]))


def _condition(what: str, cross: Tensor, factor: Tensor, next_factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Ψ, K, s) of one side, from M = LLᵀ, the cross-moment X and the next M' = L'L'ᵀ.

    With the whitened W = L⁻¹XL'⁻ᵀ, L⁻¹(ΨM'Ψᵀ)L⁻ᵀ = WWᵀ = E·diag(s)·Eᵀ, and K = L⁻ᵀE. That is the paper's recipe with
    another root of M than the symmetric one; Σ⁻¹ is the same. The s are squared correlations, below 1 thanks to the
    damping; rounding may lift them, so that half the digits of 1 − s are defended.
    """
    whitened = torch.linalg.solve_triangular(factor, cross, upper=False)
    whitened = torch.linalg.solve_triangular(next_factor.T, whitened, upper=True, left=False)
    (eigen,) = eigendecompositions([f"dependence of the {what} on the next layer's"], [whitened @ whitened.T])
    basis = torch.linalg.solve_triangular(factor.T, eigen.vectors, upper=True)
    return solve_rows(cross, next_factor), basis, eigen.values.clamp(max=1 - torch.finfo(cross.dtype).eps ** 0.5)


def apply(links: Sequence[Link], end: End, gradients: Sequence[Tensor]) -> list[Tensor]:
    """F̂⁻¹V, layer by layer; V and the result, in V's types, are (d_G, d_A) of each layer of the chain."""
    own_dtypes, gradients = [V.dtype for V in gradients], [V.to(end.A_inverse.dtype) for V in gradients]
    # Ξ
    U = [
        V - link.G_regression @ following @ link.A_regression.T
        for V, following, link in zip(gradients, gradients[1:], links, strict=False)
    ]
    # Λ
    T = [_solve(link, own) for link, own in zip(links, U, strict=True)]
    T.append(end.G_inverse @ gradients[-1] @ end.A_inverse)
    # Ξᵀ
    found = [T[0]] + [
        own - link.G_regression.T @ before @ link.A_regression
        for own, before, link in zip(T[1:], T, links, strict=False)
    ]
    return [P.to(dtype) for P, dtype in zip(found, own_dtypes, strict=True)]


def _solve(link: Link, U: Tensor) -> Tensor:
    """Σ⁻¹U = K₂[(K₂ᵀUK₁) ⊘ (1 − s₂s₁ᵀ)]K₁ᵀ."""
    rest = 1 - torch.outer(link.G_values, link.A_values)
    return link.G_basis @ ((link.G_basis.T @ U @ link.A_basis) / rest) @ link.A_basis.T
