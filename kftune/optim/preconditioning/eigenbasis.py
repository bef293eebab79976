"""Second moments of gradients in a Kronecker-factored eigenbasis, as pure numerics. Conventions: the package.

With U_A and U_G the eigenvectors of A and G, the block of a layer is taken to be (U_A ⊗ U_G) diag(S) (U_A ⊗ U_G)ᵀ with
S the mean over examples of the squared entries of U_GᵀV_nU_A, V_n = Σ_t g āᵀ the gradient of example n: the diagonal of
the exact block in that basis, and so the one with the smallest error (George et al. 2018). Where a layer has T > 1
positions they are summed before anything is squared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kftune.optim.curvature.rows import Rows
from kftune.optim.linalg.products import product

_CHUNK = 2**20  # entries of per-example gradients held at a time; on a CPU 2¹⁶ to 2²⁰ are equally fast


class Basis(NamedTuple):
    """U_A, (d_A, d_A), and U_G, (d_G, d_G); eigenvectors are columns."""

    input_vectors: Tensor
    gradient_vectors: Tensor


def add_second_moments(total: Tensor, rows: Rows, basis: Basis) -> None:
    """total += Σ_n (U_Gᵀ(Σ_t g āᵀ)U_A)², squared entry by entry.

    Args:
        total: (d_G, d_A).
        rows: of some examples.
        basis: of the layer.
    """
    n, n_positions, d_A = rows.inputs.shape
    if n_positions == 1:  # (e·x)² = e²·x²: one product
        inputs = product(rows.inputs[:, 0], basis.input_vectors).square_()
        gradients = product(rows.gradients[:, 0], basis.gradient_vectors).square_()
        total.addmm_(gradients.T, inputs)
        return
    step = max(1, _CHUNK // (d_A * rows.gradients.shape[2]))
    for start in range(0, n, step):
        own = slice(start, start + step)
        total += _example_gradients(rows.inputs[own], rows.gradients[own], basis).square_().sum(dim=0)


def _example_gradients(inputs: Tensor, gradients: Tensor, basis: Basis) -> Tensor:
    """U_Gᵀ(Σ_t g āᵀ)U_A, (n, d_G, d_A), by rotating the rows or the gradients made of them, whichever is less work."""
    U_A, U_G = basis
    n_positions, d_A, d_G = inputs.shape[1], len(U_A), len(U_G)
    if n_positions * (d_A**2 + d_G**2) < d_A * d_G * (d_A + d_G):
        return (gradients @ U_G).mT @ (inputs @ U_A)
    return torch.matmul(U_G.T, gradients.mT @ inputs) @ U_A


def moved(S: Tensor, old: Basis, new: Basis) -> Tensor:
    """The diagonal, in a new basis, of the matrix whose eigenvalues are S in the old one.

    With R = U_oldᵀU_new of either side it is (R_G∘R_G)ᵀ S (R_A∘R_A). Sums of S and signs are kept.
    """
    R_A, R_G = (before.T @ after for before, after in zip(old, new, strict=True))
    return R_G.square().T @ S @ R_A.square()


def solve(rotated: Tensor, S: Tensor, damping: float, basis: Basis) -> tuple[Tensor, Tensor]:
    """(P, ⟨P, V⟩) for P = U_G[(U_GᵀVU_A) ⊘ (S + λ)]U_Aᵀ.

    Args:
        rotated: U_GᵀVU_A, (d_G, d_A).
        S: (d_G, d_A).
        damping: λ.
        basis: of the layer.
    """
    scaled = rotated / (S + damping)
    return product(product(basis.gradient_vectors, scaled), basis.input_vectors.T), torch.sum(rotated * scaled)


def rotated_gradient(V: Tensor, basis: Basis) -> Tensor:
    """U_GᵀVU_A, (d_G, d_A)."""
    return product(product(basis.gradient_vectors.T, V), basis.input_vectors)


def rotated_gradient_of_rows(inputs: Tensor, gradients: Tensor, n_examples: int, basis: Basis) -> Tensor:
    """U_GᵀVU_A for V = (1/N)EᵀĀ that was never formed; E is (R, d_G), Ā is (R, d_A)."""
    return product(product(gradients, basis.gradient_vectors).T, product(inputs, basis.input_vectors).div_(n_examples))
