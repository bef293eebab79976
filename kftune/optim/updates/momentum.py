"""Stochastic gradient descent with momentum on any direction: the last stage of most optimizers here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


def can_fuse(parameters: list[nn.Parameter]) -> bool:
    """Whether torch has fused kernels for these (one pass over memory; 1.7 times (SGD) to 5 times (AdamW) faster)."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def _is_half_on_cpu(parameter: nn.Parameter) -> bool:
    """Whether torch's fused SGD would leave most of a tensor, from 16 entries on, as it is."""
    return parameter.device.type == "cpu" and parameter.dtype in (torch.bfloat16, torch.float16)


def like(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """The same values in the parameter's memory layout, which the fused kernels take for granted."""
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter).copy_(tensor)


def l2_coefficient(group: Mapping[str, Any]) -> float:
    """ζ of the group's objective, mean loss + (ζ/2)‖θ‖²: its weight decay, or 0 if that is decoupled."""
    decay: float = group["weight_decay"]
    return 0.0 if _is_decoupled(group) else decay


def _is_decoupled(group: Mapping[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay"))  # states that were saved before there was a choice do not say


def momentum_step(optimizer: torch.optim.Optimizer, directions: Mapping[nn.Parameter, Tensor]) -> None:
    """v ← μv + d; θ ← θ − η(d + μv) with Nesterov, θ ← θ − ηv without (torch's form; v starts as d).

    η, μ and the kind are ``lr``, ``momentum`` and ``nesterov`` of the parameter's group; v is
    ``state[parameter]["momentum_buffer"]``, as in :class:`torch.optim.SGD`. A weight decay ζ that is decoupled, as the
    group's ``decoupled_weight_decay`` says, comes first: θ ← (1 − ηζ)θ (Loshchilov, Hutter 2019, in the form of
    :class:`torch.optim.AdamW`).

    Args:
        optimizer: whose groups and state to use.
        directions: parameter → d; parameters that are not named stay as they are.
    """
    for group in optimizer.param_groups:
        named = [p for p in group["params"] if p in directions]
        if named and _is_decoupled(group) and group["weight_decay"] != 0:
            torch._foreach_mul_(named, 1 - group["lr"] * group["weight_decay"])
        started = [p for p in named if "momentum_buffer" in optimizer.state[p]]
        new = [p for p in named if "momentum_buffer" not in optimizer.state[p]]
        for parameters in (started, new):  # the fused kernel takes all buffers or none
            if parameters:
                _step(optimizer, group, parameters, directions)


def _step(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    parameters: list[nn.Parameter],
    directions: Mapping[nn.Parameter, Tensor],
) -> None:
    buffers: list[Tensor | None] = [optimizer.state[p].get("momentum_buffer") for p in parameters]
    nesterov = group["nesterov"] and group["momentum"] > 0
    sgd(
        [*parameters],
        [like(directions[p], p) for p in parameters],
        buffers,
        has_sparse_grad=False,
        foreach=False,
        fused=can_fuse(parameters) and not any(_is_half_on_cpu(p) for p in parameters),
        weight_decay=0.0,
        momentum=group["momentum"],
        lr=group["lr"],
        dampening=0.0,
        nesterov=nesterov,
        maximize=False,
    )
    if group["momentum"] > 0:
        for parameter, buffer in zip(parameters, buffers, strict=True):
            optimizer.state[parameter]["momentum_buffer"] = buffer


def decayed_gradients(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Tensor]:
    """Parameter → gradient of loss + (ζ/2)·‖θ‖², for every parameter that has a gradient; see :func:`l2_coefficient`.

    ``.grad`` itself stays as it is.
    """
    gradients: dict[nn.Parameter, Tensor] = {}
    for group in optimizer.param_groups:
        parameters = [p for p in group["params"] if p.grad is not None]
        own: list[Any] = [p.grad for p in parameters]
        l2 = l2_coefficient(group)
        if parameters and l2 != 0:
            own = list(torch._foreach_add(own, parameters, alpha=l2))
        gradients |= dict(zip(parameters, own, strict=True))
    return gradients
