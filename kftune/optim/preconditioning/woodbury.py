"""Solves with a damped Fisher of few examples by the matrix of their inner products; pure numerics.

With the columns j_m/√N of J, the gradients of N examples in C directions (see
:mod:`kftune.optim.curvature.example_gradients`), and a damping λ_k for each layer k,

    (JJᵀ + Λ)⁻¹U = Λ⁻¹(U − J c),   c = (I + JᵀΛ⁻¹J)⁻¹ JᵀΛ⁻¹U,

where JᵀΛ⁻¹J = Σ_k (1/λ_k) J_kᵀJ_k is C·N × C·N: the sum over layers of their Gram matrices, or one layer's alone where
the Fisher is taken to be block-diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kftune.errors import CurvatureError
from kftune.optim.curvature.example_gradients import ExampleGradients
from kftune.optim.linalg.decompositions import damped_choleskys
from kftune.optim.linalg.products import widest

_LOST = 1e-2  # largest relative residual that rounding may leave
_ROUNDING = 4  # eps·‖U‖, below which what U has outside the span of J is rounding

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
        CurvatureError: if float64 does not suffice either (the damping is too small), or a gradient is not finite.
    """
    grams = [_gram(system) for system in systems]
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


def _choleskys(names: Sequence[str], grams: Sequence[Tensor]) -> list[Tensor]:
    """Factors of those that leave no too large a residual in their own precision.

    Raises:
        CurvatureError: it says whether the damping is too small for that.
    """
    residuals = [gram.diagonal().sum() * torch.finfo(gram.dtype).eps for gram in grams]
    for gram, residual in zip(grams, residuals, strict=True):
        # Made unusable: the factorisation tells the host of it, so there is no synchronisation for this alone.
        diagonal = gram.diagonal()
        unusable = torch.full_like(diagonal, torch.nan)
        diagonal += torch.where(residual > _LOST, unusable, torch.zeros_like(diagonal))
    try:
        return damped_choleskys(names, grams, [gram.new_ones(()) for gram in grams])
    except CurvatureError as error:
        for name, gram, residual in zip(names, grams, residuals, strict=True):
            if math.isfinite(residual.item()) and residual.item() > _LOST:
                ratio = residual.item() / torch.finfo(gram.dtype).eps
                raise CurvatureError(
                    f"the damping is too small: the {name} has {ratio:.3g} times as large a trace, and rounding in "
                    f"{str(gram.dtype).removeprefix('torch.')} would leave nothing of the solution"
                ) from error
        raise


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


def is_rounding(system: Blocks, gradients: Mapping[str, Tensor], solutions: Mapping[str, Tensor]) -> Tensor:
    """Whether rounding of U is all that is left in the solution, a scalar on the device.

    Where U is in the span of J, U − Jc = Λ·solution is small beside U for a small damping, and what rounding put into U
    outside the span, about eps·‖U‖ (0.4 to 1.7 times that for networks of 100 to 10⁵ parameters), is not.

    Args:
        system: see :data:`Blocks`.
        gradients: layer → U_k.
        solutions: of :func:`solve`.
    """
    names = list(gradients)
    rest = torch.stack([(torch.linalg.vector_norm(solutions[k]) * system[k][1]).double() for k in names])
    sizes = torch.stack([torch.linalg.vector_norm(gradients[k]).double() for k in names])
    eps = max(torch.finfo(U.dtype).eps for U in gradients.values())
    whole = sizes.norm()
    # What overflows is for the check of the directions to refuse.
    rounding: Tensor = (rest.norm() <= _ROUNDING * eps * whole) & (whole > 0) & torch.isfinite(whole)
    return rounding


def _scaled_products(examples: ExampleGradients, damping: Tensor, U: Tensor) -> Tensor:
    """J_kᵀU_k/λ_k."""
    products: Tensor = examples.products(U) / (damping * examples.n_examples**0.5)
    return products
