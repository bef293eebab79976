"""K-FAC's quadratic model of the objective, on the span of a few directions (Martens, Grosse 2015, sections 6.4, 7).

With h the objective, that is the mean loss plus (η/2)‖θ‖², λ the damping, F the exact Fisher of the batch (the
generalised Gauss-Newton matrix of the likelihoods here) and D = [d₁ … d_k], one direction per column,

    M(Dc) − M(0) = ½ cᵀQc + bᵀc,   Q = DᵀFD + (λ + η)DᵀD,   b = Dᵀ∇h,   smallest at c = −Q⁻¹b.

DᵀFD = (1/N) Σ_n (J_n D)ᵀ H_n (J_n D) needs J_n D alone, one Jacobian product per direction, with J_n the Jacobian of
example n's output and H_n the Hessian of its loss by that output, as in :mod:`kftune.optim.curvature.likelihoods`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.linalg.products import precise

Direction: TypeAlias = Mapping[nn.Parameter, Tensor]
"""Parameter → what is added to it; parameters that are not named stay as they are."""

_BLOCK = 2048  # entries that are summed in the parameters' own precision


@dataclass(frozen=True)
class QuadraticModel:
    """M on the span of k directions; everything is float64 on the host.

    Attributes:
        curvature: DᵀFD, (k, k).
        products: DᵀD, (k, k).
        slopes: Dᵀ∇h, (k,).
        damping: λ.
        weight_decay: η.
        resolution: relative error of the products: eigenvalues of Q, scaled to a unit diagonal, below it count as zero.
    """

    curvature: Tensor
    products: Tensor
    slopes: Tensor
    damping: float
    weight_decay: float
    resolution: float

    def among(self, chosen: Sequence[int]) -> QuadraticModel:
        """The model on the span of some of the directions."""
        i = torch.tensor(chosen)
        return replace(self, curvature=self.curvature[i][:, i], products=self.products[i][:, i], slopes=self.slopes[i])

    def minimizer(self) -> Tensor:
        """c = −Q⁻¹b, the shortest (in units of the directions' own Q) if directions depend on each other.

        A direction that is zero gets the coefficient 0.
        """
        Q = self._matrix(damped=True)
        scale = torch.where(Q.diagonal() > 0, Q.diagonal().rsqrt(), 0.0)
        values, vectors = torch.linalg.eigh(scale[:, None] * Q * scale)
        inverted = torch.where(values > self.resolution * len(values), 1 / values, 0.0)
        c: Tensor = -scale * (vectors @ (inverted * (vectors.T @ (scale * self.slopes))))
        return c

    def change(self, c: Tensor, *, damped: bool = True) -> float:
        """M(Dc) − M(0); ``damped`` says whether λ counts."""
        return float(0.5 * c @ self._matrix(damped=damped) @ c + self.slopes @ c)

    def _matrix(self, *, damped: bool) -> Tensor:
        return self.curvature + (self.weight_decay + (self.damping if damped else 0.0)) * self.products


def inner_products(gradient: Direction, directions: Sequence[Direction]) -> Tensor:
    """[∇h d₁ … d_k]ᵀ[∇h d₁ … d_k], (k + 1, k + 1) in float64 on the device; ``gradient`` names every parameter."""
    n = sum(g.numel() for g in gradient.values())
    first = next(iter(gradient.values()))
    rows = first.new_zeros(len(directions) + 1, n + -n % _BLOCK, dtype=precise(first.dtype))
    for row, d in zip(rows, (gradient, *directions), strict=True):
        torch.cat([(d[p] if p in d else torch.zeros_like(g)).reshape(-1) for p, g in gradient.items()], out=row[:n])
    # One product of 10⁷ entries in a row is wrong by 1e-3 in float32.
    blocks = rows.view(len(rows), -1, _BLOCK).transpose(0, 1)
    return (blocks @ blocks.transpose(1, 2)).sum(dim=0, dtype=torch.float64)


def fisher_products(output: Tensor, directions: Sequence[Direction], likelihood: Likelihood) -> Tensor:
    """N·DᵀFD of the N examples behind ``output``, (k, k) in float64 on the device.

    Args:
        output: (N, …) the model's output with its graph; its forward pass must be twice differentiable.
        directions: D.
        likelihood: the predictive distribution.
    """
    moved = [v.double().reshape(len(output), -1) for v in jacobian_products(output, directions)]
    rooted = torch.stack([_times_hessian_root(output.detach().double(), v, likelihood).flatten() for v in moved])
    return rooted @ rooted.T


def jacobian_products(output: Tensor, directions: Sequence[Direction]) -> list[Tensor]:
    """J d for every direction d, each of the output's shape, by differentiating twice.

    u ↦ Jᵀu is linear, so its derivative in the direction d, Jd, does not depend on the u at which it is taken. Unlike
    forward-mode differentiation this leaves the parameters where they are in the model, and what the model keeps from
    its gradient (``detach``, ``no_grad``) stays out here too.
    """
    named = list(dict.fromkeys(p for direction in directions for p in direction))
    u = torch.zeros_like(output, requires_grad=True)
    found = torch.autograd.grad(output, named, grad_outputs=u, create_graph=True, allow_unused=True)
    pulled = {p: g for p, g in zip(named, found, strict=True) if g is not None and g.requires_grad}
    return [_derivative(u, pulled, direction) for direction in directions]


def _derivative(u: Tensor, pulled: Mapping[nn.Parameter, Tensor], direction: Direction) -> Tensor:
    """∂⟨Jᵀu, d⟩/∂u; ``pulled`` is Jᵀu."""
    used = [p for p in direction if p in pulled]
    if not used:
        return torch.zeros_like(u)
    (moved,) = torch.autograd.grad(
        [pulled[p] for p in used],
        u,
        grad_outputs=[direction[p] for p in used],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    product: Tensor = moved.detach()
    return product


def _times_hessian_root(output: Tensor, moved: Tensor, likelihood: Likelihood) -> Tensor:
    """(N, O) rows r_n with ⟨r_n, r'_n⟩ = (J_n d)ᵀ H_n (J_n d'), for ``moved`` the J_n d, (N, O)."""
    n_outputs = output[0].numel()
    if likelihood == "gaussian":
        return moved * math.sqrt(2 / n_outputs)
    if likelihood == "bernoulli":
        p = torch.sigmoid(output).view_as(moved)
        return moved * (p * (1 - p) / n_outputs).sqrt()
    p = torch.softmax(output, dim=-1)
    v = moved.view_as(p)
    # vᵀ(diag(p) − ppᵀ)v is the variance of v under p; taken about its mean, it cannot come out negative.
    centred = v - (p * v).sum(dim=-1, keepdim=True)
    n_positions = n_outputs // output.shape[-1]
    return centred * (p / n_positions).sqrt()


def combine(directions: Sequence[Direction], coefficients: Sequence[float]) -> dict[nn.Parameter, Tensor]:
    """Σ c_i d_i, in new tensors."""
    total: dict[nn.Parameter, Tensor] = {}
    for direction, c in zip(directions, coefficients, strict=True):
        old, new = [p for p in direction if p in total], [p for p in direction if p not in total]
        if old:
            torch._foreach_add_([total[p] for p in old], [direction[p] for p in old], alpha=c)
        if new:
            total |= zip(new, torch._foreach_mul([direction[p] for p in new], c), strict=True)
    return total
