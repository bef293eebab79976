"""Fully connected networks, losses and metrics that several problems share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kftune.errors import UsageError


def fully_connected(widths: Sequence[int], *, activation: Callable[[], nn.Module], bias: bool) -> nn.Sequential:
    """Linear layers with an activation between them, none after the last: (n, widths[0]) → (n, widths[-1]).

    Weights come from torch's global generator: Xavier-uniform (Glorot & Bengio 2010, eq. 16), or He-uniform for
    ReLU (He et al. 2015, eq. 10), whose variance accounts for the half of the units that are off. Biases are zero.
    """
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out, bias=bias), activation()]
    network = nn.Sequential(*layers[:-1])
    for layer in network:
        if isinstance(layer, nn.Linear):
            if activation is nn.ReLU:
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            else:
                nn.init.xavier_uniform_(layer.weight)
            if bias:
                nn.init.zeros_(layer.bias)
    return network


def share_correct(output: Tensor, targets: Tensor) -> Tensor:
    """Share of rows of ``output`` (n, classes) whose largest entry is the class in ``targets`` (n,), a scalar."""
    return (output.argmax(dim=-1) == targets).to(output.dtype).mean()


def check_bool(name: str, value: Any) -> bool:
    """``value`` if it is a bool.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, got {value!r}")
    return value


def check_count(name: str, value: Any) -> int:
    """``value`` if it is a whole number of at least 1.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def to_device(
    images: Any, labels: Any, *, device: torch.device, dtype: torch.dtype, scale: int
) -> tuple[Tensor, Tensor]:
    """Flattened images (n, pixels) in [0, 1] and labels (n,) of int64 as tensors on ``device``.

    Args:
        images: array (n, …) of whole numbers in {0, …, scale}.
        labels: array (n,) of class numbers.
        device: where the tensors go.
        dtype: of the images.
        scale: the images' largest possible value.
    """
    pixels = torch.tensor(images, device=device).flatten(start_dim=1).to(dtype) / scale
    return pixels, torch.tensor(labels, dtype=torch.int64, device=device)
