"""The whole objective's curvature over all parameters of a small network, from its definition."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev


def flatten(tensors) -> Tensor:
    """Tensors in a row."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def as_direction(model: nn.Module, flat: Tensor) -> dict[nn.Parameter, Tensor]:
    """Inverse of :func:`flatten` over the parameters of a model."""
    parameters = list(model.parameters())
    parts = flat.split([p.numel() for p in parameters])
    return {p: part.view_as(p) for p, part in zip(parameters, parts, strict=True)}


def _output(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return functional_call(model, parameters | buffers, (x,))


def dense_ggn(model: nn.Module, x: Tensor, y: Tensor, loss) -> Tensor:
    """JᵀHJ of a whole batch: J of all its outputs by all parameters, H the Hessian of the mean loss by all outputs.

    Buffers are copies: what the model counts or averages stays as it is.
    """
    own = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = jacrev(lambda parameters: _output(model, parameters, x))(own)
    output = _output(model, own, x)
    n = output.numel()
    J = torch.cat([jacobian[name].reshape(n, -1) for name in own], dim=1)
    H = hessian(lambda f: loss(f, y))(output).reshape(n, n)
    return J.T @ H @ J


def objective_gradient(model: nn.Module, x: Tensor, y: Tensor, loss, weight_decay: float) -> Tensor:
    """∇h, with h the mean loss plus (weight decay/2)‖θ‖²."""
    own = {name: p.detach() for name, p in model.named_parameters()}

    def h(parameters):
        squares = sum((p**2).sum() for p in parameters.values())
        return loss(_output(model, parameters, x), y) + 0.5 * weight_decay * squares

    return flatten(torch.func.grad(h)(own).values())
