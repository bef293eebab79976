"""The three dampings of a Kronecker-factored block: how A, G and λ become a preconditioner, and how it is applied.

With F = A ⊗ G, V the gradient of [W b] and λ the damping:

* ``exact``: (F + λI)⁻¹, that is U_G[(U_GᵀVU_A) ⊘ (e_G e_Aᵀ + λ)]U_Aᵀ by eigendecomposition;
* ``factored``: (G + √λ/π·I)⁻¹ V (A + π√λ·I)⁻¹, π² = (tr A/d_A)/(tr G/d_G) (K-FAC, section 6.3); equal to the inverse of
  F + λI + π√λ(I ⊗ G) + (√λ/π)(A ⊗ I), and unchanged by A → cA, G → G/c;
* ``plain``: (G + λI)⁻¹ V (A + λI)⁻¹.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from kftune.optim._factors import trace_ratio
from kftune.optim._linalg import damped_inverses, eigendecompositions

DampingMethod: TypeAlias = Literal["factored", "exact", "plain"]
DAMPING_METHODS: tuple[str, ...] = get_args(DampingMethod)

Factors: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""Layer → (A, G)."""

Preconditioner: TypeAlias = dict[str, Tensor]
"""What is kept of a layer between inversions: ``input_inverse`` and ``gradient_inverse``, or for ``exact``
``input_values``, ``input_vectors``, ``gradient_values`` and ``gradient_vectors``."""


def make_preconditioners(
    factors: Factors, damping: Mapping[str, float], method: DampingMethod
) -> dict[str, Preconditioner]:
    """Layer → what :func:`precondition` needs.

    Args:
        factors: of the layers to do.
        damping: layer → λ.
        method: see the module.

    Raises:
        CurvatureError: if a factor cannot be inverted or decomposed.
    """
    names = [f"{side} covariance of layer {layer!r}" for layer in factors for side in ("input", "gradient")]
    matrices = [matrix for pair in factors.values() for matrix in pair]
    if method == "exact":
        eigen = eigendecompositions(names, matrices)
        return {
            layer: {
                "input_values": eigen[2 * i].values,
                "input_vectors": eigen[2 * i].vectors,
                "gradient_values": eigen[2 * i + 1].values,
                "gradient_vectors": eigen[2 * i + 1].vectors,
            }
            for i, layer in enumerate(factors)
        }
    dampings = [part for layer, (A, G) in factors.items() for part in split_damping(A, G, damping[layer], method)]
    inverses = damped_inverses(names, matrices, dampings)
    return {
        layer: {"input_inverse": inverses[2 * i], "gradient_inverse": inverses[2 * i + 1]}
        for i, layer in enumerate(factors)
    }


def split_damping(A: Tensor, G: Tensor, damping: float, method: DampingMethod) -> tuple[Tensor, Tensor]:
    """(what is added to A's diagonal, what is added to G's); scalars on the device."""
    if method == "plain":
        return A.new_full((), damping), G.new_full((), damping)
    pi = trace_ratio(A, G)
    return pi * damping**0.5, damping**0.5 / pi


def precondition(V: Tensor, preconditioner: Preconditioner, damping: float) -> Tensor:
    """P, the preconditioned gradient; V and P are (d_G, d_A). ``damping`` matters for ``exact`` only."""
    if "input_inverse" in preconditioner:
        return preconditioner["gradient_inverse"] @ V @ preconditioner["input_inverse"]
    U_A, U_G = preconditioner["input_vectors"], preconditioner["gradient_vectors"]
    curvature = torch.outer(preconditioner["gradient_values"], preconditioner["input_values"])
    return U_G @ ((U_G.T @ V @ U_A) / (curvature + damping)) @ U_A.T
