"""torch's AdamW on parameters, and Adam's direction for gradients in any basis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from kftune.optim.checks import check_range
from kftune.optim.updates.momentum import can_fuse, like


def adam_state(tensor: Tensor) -> dict[str, Any]:
    """Adam's state before the first gradient: the ``step`` count and both running averages, shaped as ``tensor``."""
    return {
        "step": torch.zeros((), device=tensor.device),
        "exp_avg": torch.zeros_like(tensor, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(tensor, memory_format=torch.preserve_format),
    }


def adamw_group(
    parameters: Sequence[nn.Parameter], *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
) -> dict[str, Any]:
    """The hyperparameters of a parameter group for :func:`adamw_group_step`.

    Raises:
        ValueError: an invalid one.
    """
    check_range("lr", lr)
    check_range("beta1", beta1, high=1.0)
    check_range("beta2", beta2, high=1.0)
    check_range("eps", eps, low_in=False)
    check_range("weight_decay", weight_decay)
    # torch moves a loaded "step" to the parameter's device for groups that say "fused".
    fused = can_fuse(list(parameters))
    return {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "fused": fused}


def adamw_group_step(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameters: Sequence[nn.Parameter]
) -> None:
    """:func:`adamw_step` on some parameters of a group with its hyperparameters."""
    names = ("lr", "beta1", "beta2", "eps", "weight_decay", "fused")
    adamw_step(optimizer, parameters, **{name: group[name] for name in names})


def adamw_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    fused: bool,
) -> None:
    """θ ← (1 − lr·weight_decay)·θ − lr·m̂/(√v̂ + eps), bit-equal to :class:`torch.optim.AdamW`.

    The state is ``optimizer.state[parameter]``, with torch's names.

    Args:
        optimizer: whose state to use.
        parameters: those to change; ones without a gradient stay as they are.
        lr: learning rate.
        beta1: decay of m.
        beta2: decay of v.
        eps: added to the root.
        weight_decay: decoupled.
        fused: whether to use torch's fused kernels.
    """
    moved = [p for p in parameters if p.grad is not None]
    for p in moved:
        if not optimizer.state[p]:
            optimizer.state[p] = adam_state(p)
    gradients = [like(p.grad, p) for p in moved if p.grad is not None]
    states = [optimizer.state[p] for p in moved]
    _adamw(
        moved,
        gradients,
        states,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        fused=fused,
    )


def adam_directions(
    gradients: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    *,
    beta1: float,
    beta2: float,
    eps: float,
    fused: bool,
) -> list[Tensor]:
    """m̂/(√v̂ + eps) for each gradient, whose state takes it in.

    Args:
        gradients: of any shape, in any basis.
        states: of :func:`adam_state`, in the same basis.
        beta1: decay of m.
        beta2: decay of v.
        eps: added to the root.
        fused: whether to use torch's fused kernels.
    """
    # One pass of torch's kernel instead of six of our own: a step of length −1 from zero.
    directions = [torch.zeros_like(g, memory_format=torch.contiguous_format) for g in gradients]
    contiguous = [g.contiguous() for g in gradients]
    _adamw(
        directions,
        contiguous,
        states,
        lr=-1.0,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=0.0,
        fused=fused,
    )
    return directions


def shared_adam_direction(
    gradient: Tensor,
    state: dict[str, Any],
    share: Callable[[Tensor], None],
    *,
    beta1: float,
    beta2: float,
    eps: float,
) -> Tensor:
    """As :func:`adam_directions`, with squares that some entries share; the state's tensors are replaced.

    Args:
        gradient: of any shape, in any basis.
        state: of :func:`adam_state`, in the same basis.
        share: makes entries of the squared gradient equal, in place.
        beta1: decay of m.
        beta2: decay of v.
        eps: added to the root.
    """
    square = gradient.square()
    share(square)
    state["step"] = state["step"] + 1
    state["exp_avg"] = torch.lerp(state["exp_avg"], gradient, 1 - beta1)
    state["exp_avg_sq"] = torch.lerp(state["exp_avg_sq"], square, 1 - beta2)
    step = state["step"].to(gradient.device)
    average, square = state["exp_avg"] / (1 - beta1**step), state["exp_avg_sq"] / (1 - beta2**step)
    direction: Tensor = average / (square.sqrt() + eps)
    return direction


def _adamw(
    parameters: Sequence[Tensor],
    gradients: list[Tensor],
    states: Sequence[dict[str, Any]],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    fused: bool,
) -> None:
    adamw(
        list(parameters),
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        foreach=False,
        fused=fused,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
