"""Gradients in two thin factors: for a batch smaller than a layer, cheaper to precondition than the matrix.

With E the rows g and Ā the rows ā of N examples, V = (1/N)EᵀĀ, and (G⁻¹VA⁻¹) = (1/N)(EG⁻¹)ᵀ(ĀA⁻¹): R rows cost
2R(d_A² + d_G²) operations where the matrix costs 2·d_A·d_G·(d_A + d_G), and V itself is never formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kftune.optim.curvature.rows import Rows
from kftune.optim.linalg.products import product

_STRIP = 128  # rows of a strip of a symmetric product, of which only one triangle is needed


def flat(rows: Rows) -> tuple[Tensor, Tensor]:
    """(Ā, E), each (R, d), R = N·T."""
    return rows.inputs.flatten(0, 1), rows.gradients.flatten(0, 1)


def gradient(rows: Rows) -> Tensor:
    """V = (1/N)EᵀĀ, (d_G, d_A)."""
    inputs, gradients = flat(rows)
    return product(gradients.T, inputs).div_(len(rows.inputs))


def product_flops(n_rows: int, d_A: int, d_G: int) -> float:
    """Operations of :func:`inner_product`."""
    return min(_triangle_flops(n_rows, d_A, d_G), 2.0 * n_rows * d_A * d_G)


def _triangle_flops(n_rows: int, d_A: int, d_G: int) -> float:
    return float(n_rows * (n_rows + _STRIP) * (d_A + d_G))


def inner_product(rows: Rows, solved_inputs: Tensor, solved_gradients: Tensor, P: Tensor) -> Tensor:
    """⟨P, V⟩ for P = (1/N)XᵀY, X = EG⁻¹ and Y = ĀA⁻¹, by whichever way is shorter.

    It is (1/N)Σ over rows of (EP)∘Ā, and (1/N²)Σ(XEᵀ)∘(YĀᵀ), where both matrices are symmetric.

    Args:
        rows: E and Ā.
        solved_inputs: Y, (R, d_A).
        solved_gradients: X, (R, d_G).
        P: (d_G, d_A).
    """
    (inputs, gradients), n = flat(rows), len(rows.inputs)
    n_rows, d_A, d_G = len(inputs), inputs.shape[1], gradients.shape[1]
    if _triangle_flops(n_rows, d_A, d_G) >= 2 * n_rows * d_A * d_G:
        return torch.sum(product(gradients, P) * inputs) / n
    total = P.new_zeros(())
    strip = _STRIP if P.device.type == "cpu" else n_rows  # a GPU is faster with one large product
    for start in range(0, n_rows, strip):
        own = slice(start, start + strip)
        X, Y = solved_gradients[own], solved_inputs[own]
        total = total + torch.sum((X @ gradients[own].T) * (Y @ inputs[own].T))
        if start:
            total = total + 2 * torch.sum((X @ gradients[:start].T) * (Y @ inputs[:start].T))
    return total / n**2
