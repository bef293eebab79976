"""The three dampings of a Kronecker-factored block: how A, G and λ become a preconditioner, and how it is applied.

With F = A ⊗ G, V the gradient of [W b] and λ the damping:

* ``exact``: (F + λI)⁻¹, that is U_G[(U_GᵀVU_A) ⊘ (e_G e_Aᵀ + λ)]U_Aᵀ by eigendecomposition;
* ``factored``: (G + √λ/π·I)⁻¹ V (A + π√λ·I)⁻¹, π² = (tr A/d_A)/(tr G/d_G) (K-FAC, section 6.3); equal to the inverse of
  F + λI + π√λ(I ⊗ G) + (√λ/π)(A ⊗ I), and unchanged by A → cA, G → G/c;
* ``plain``: (G + λI)⁻¹ V (A + λI)⁻¹.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, TypeVar, get_args

import torch
from torch import Tensor

from kftune.optim.linalg.decompositions import (
    damped_choleskys,
    damped_inverses,
    eigendecompositions,
    solve_between,
    solve_rows,
)
from kftune.optim.linalg.products import product

_T = TypeVar("_T")

DampingMethod: TypeAlias = Literal["factored", "exact", "plain"]
DAMPING_METHODS: tuple[str, ...] = get_args(DampingMethod)

Factors: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""Layer → (A, G)."""

Preconditioner: TypeAlias = dict[str, Tensor]
"""What is kept of a layer between inversions: ``input_inverse`` and ``gradient_inverse``; or, where they would be used
once, ``input_cholesky`` and ``gradient_cholesky``; or for ``exact`` ``input_values``, ``input_vectors``,
``gradient_values`` and ``gradient_vectors``."""

PRECONDITIONER_SHAPES: Mapping[str, str] = {
    "input_inverse": "AA",
    "gradient_inverse": "GG",
    "input_cholesky": "AA",
    "gradient_cholesky": "GG",
    "input_values": "A",
    "input_vectors": "AA",
    "gradient_values": "G",
    "gradient_vectors": "GG",
}
"""Dimensions of its tensors, as in :attr:`~kftune.optim.preconditioning.layerwise.LayerwiseOptimizer.layer_shapes`."""


def make_preconditioners(
    factors: Factors, damping: Mapping[str, float], method: DampingMethod, *, once: bool = False
) -> dict[str, Preconditioner]:
    """Layer → what :func:`precondition` needs.

    Args:
        factors: of the layers to do.
        damping: layer → λ.
        method: see the module.
        once: whether they will be used for a single update.

    Raises:
        CurvatureError: if a factor cannot be inverted or decomposed.
    """
    names = [f"{side} covariance of layer {layer!r}" for layer in factors for side in ("input", "gradient")]
    matrices = [matrix for pair in factors.values() for matrix in pair]
    if method == "exact":
        return {
            layer: {
                "input_values": A.values,
                "input_vectors": A.vectors,
                "gradient_values": G.values,
                "gradient_vectors": G.vectors,
            }
            for layer, (A, G) in zip(factors, _pairs(eigendecompositions(names, matrices)), strict=True)
        }
    dampings = [part for layer, (A, G) in factors.items() for part in split_damping(A, G, damping[layer], method)]
    what = "cholesky" if once else "inverse"
    made = (damped_choleskys if once else damped_inverses)(names, matrices, dampings)
    return {
        layer: {f"input_{what}": of_A, f"gradient_{what}": of_G}
        for layer, (of_A, of_G) in zip(factors, _pairs(made), strict=True)
    }


def _pairs(items: Sequence[_T]) -> Iterator[tuple[_T, _T]]:
    """The items two by two."""
    return zip(items[::2], items[1::2], strict=True)


def split_damping(A: Tensor, G: Tensor, damping: float, method: DampingMethod) -> tuple[Tensor, Tensor]:
    """(what is added to A's diagonal, what is added to G's); scalars on the device."""
    return split_by_means(A.diagonal().mean(), G.diagonal().mean(), damping, method)


def split_by_means(mean_A: Tensor, mean_G: Tensor, damping: float, method: DampingMethod) -> tuple[Tensor, Tensor]:
    """:func:`split_damping` by the means of the diagonals, for A and G that were not formed."""
    if method == "plain":
        return mean_A.new_full((), damping), mean_G.new_full((), damping)
    pi = trace_ratio(mean_A, mean_G)
    return pi * damping**0.5, damping**0.5 / pi


def trace_ratio(mean_A: Tensor, mean_G: Tensor) -> Tensor:
    """π of factored Tikhonov damping: π² = (tr A/d_A)/(tr G/d_G); 1 where a trace is zero (K-FAC, section 6.3).

    Args:
        mean_A: tr A/d_A, a scalar on the device.
        mean_G: tr G/d_G, likewise.

    Returns:
        A scalar on their device; nothing is synchronised.
    """
    usable = (mean_A > 0) & (mean_G > 0)
    # The roots first: the ratio itself can overflow in float32.
    return torch.where(usable, mean_A.sqrt() / mean_G.sqrt(), torch.ones_like(mean_A))


def is_preconditioner(state: Mapping[str, Tensor]) -> bool:
    """Whether ``state`` holds what :func:`precondition` needs."""
    return any(f"gradient_{what}" in state for what in ("inverse", "cholesky", "vectors"))


def precondition(V: Tensor, preconditioner: Preconditioner, damping: float) -> Tensor:
    """P, the preconditioned gradient; V and P are (d_G, d_A). ``damping`` matters for ``exact`` only."""
    if "gradient_inverse" in preconditioner:
        return product(product(preconditioner["gradient_inverse"], V), preconditioner["input_inverse"])
    if "gradient_cholesky" in preconditioner:
        return solve_between(preconditioner["gradient_cholesky"], V, preconditioner["input_cholesky"])
    U_A, U_G = preconditioner["input_vectors"], preconditioner["gradient_vectors"]
    curvature = torch.outer(preconditioner["gradient_values"], preconditioner["input_values"])
    rotated = product(product(U_G.T, V), U_A)
    return product(product(U_G, rotated / (curvature + damping)), U_A.T)


def precondition_rows(rows: Tensor, preconditioner: Preconditioner, side: Literal["input", "gradient"]) -> Tensor:
    """Rows of ā (or g), (n, d), times the damped A⁻¹ (or G⁻¹); not for ``exact``, which is no product of the two."""
    if f"{side}_inverse" in preconditioner:
        return product(rows, preconditioner[f"{side}_inverse"])
    return solve_rows(rows, preconditioner[f"{side}_cholesky"])
