"""Solves with a damped Fisher of few examples by the matrix of their inner products; pure numerics.

With the columns j_m/√N of J, the gradients of N examples in C directions (see
:mod:`kftune.optim.curvature.example_gradients`), and a damping λ_k for each layer k,

    (JJᵀ + Λ)⁻¹U = Λ⁻¹(U − J c),   c = (I + JᵀΛ⁻¹J)⁻¹ JᵀΛ⁻¹U,

where JᵀΛ⁻¹J = Σ_k (1/λ_k) J_kᵀJ_k is C·N × C·N: the sum over layers of their Gram matrices, or one layer's alone where
the Fisher is taken to be block-diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kftune.errors import CurvatureError
from kftune.optim.curvature.example_gradients import ExampleGradients
from kftune.optim.linalg.decompositions import damped_choleskys
from kftune.optim.linalg.products import widest

_LOST = 1e-2  # largest relative residual that rounding may leave

Blocks = Mapping[str, tuple[ExampleGradients, Tensor]]
"""Layer → (gradients of the Fisher's examples, λ as a scalar on the device); the layers that share one system."""


def factorize(names: Sequence[str], systems: Sequence[Blocks]) -> list[Tensor]:
    """Lower Cholesky factors of I + JᵀΛ⁻¹J, one for each system.

    Args:
        names: what each system's matrix is, for errors.
        systems: see :data:`Blocks`.

    Returns:
        Factors in the gradients' precision; in float64, from inner products in float64, where it does not suffice: for
        a factor, or for the solution, whose residual relative to the right side is eps·‖JᵀΛ⁻¹J‖ at most.

    Raises:
        CurvatureError: if float64 does not suffice either, or a gradient is not finite.
    """
    grams = [_marked(_gram(system)) for system in systems]
    try:
        return _choleskys(names, grams)
    except CurvatureError:
        if all(gram.dtype == torch.float64 for gram in grams):
            raise
    exact = [_gram({k: (j.to(torch.float64), d.double()) for k, (j, d) in system.items()}) for system in systems]
    return _choleskys(names, exact)


def _gram(system: Blocks) -> Tensor:
    """JᵀΛ⁻¹J."""
    parts = [examples.gram().div_(damping * examples.n_examples) for examples, damping in system.values()]
    total = parts[0].to(widest(parts))
    for part in parts[1:]:
        total += part
    return total


def _marked(gram: Tensor) -> Tensor:
    """The matrix, made unusable where it would leave too large a residual in its own precision."""
    if gram.dtype != torch.float64:  # the factorisation tells the host of it: no synchronisation of its own
        diagonal = gram.diagonal()
        lost = diagonal.sum() * torch.finfo(gram.dtype).eps > _LOST
        diagonal += torch.where(lost, torch.full_like(diagonal, torch.nan), torch.zeros_like(diagonal))
    return gram


def _choleskys(names: Sequence[str], grams: Sequence[Tensor]) -> list[Tensor]:
    return damped_choleskys(names, grams, [gram.new_ones(()) for gram in grams])


def solve(system: Blocks, factor: Tensor, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layer → its part of (JJᵀ + Λ)⁻¹U.

    Args:
        system: what ``factor`` was made of.
        factor: of :func:`factorize`.
        gradients: layer → U_k, (d_G, d_A); a layer that is not named counts as zero.

    Returns:
        Solutions for the layers in ``gradients``.
    """
    if not gradients:
        return {}
    precise = {name: (system[name][0].to(factor.dtype), system[name][1].to(factor.dtype)) for name in gradients}
    right = {name: U.to(factor.dtype) for name, U in gradients.items()}
    total = torch.stack([_scaled_products(*precise[name], U) for name, U in right.items()]).sum(dim=0)
    c = torch.cholesky_solve(total[:, None], factor)[:, 0]
    found: dict[str, Tensor] = {}
    for name, U in right.items():
        examples, damping = precise[name]
        P = (U - examples.combination(c / examples.n_examples**0.5)).div_(damping)
        found[name] = P.to(gradients[name].dtype)
    return found


def _scaled_products(examples: ExampleGradients, damping: Tensor, U: Tensor) -> Tensor:
    """J_kᵀU_k/λ_k."""
    products: Tensor = examples.products(U) / (damping * examples.n_examples**0.5)
    return products
