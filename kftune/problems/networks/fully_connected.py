"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

__all__ = ["fully_connected"]


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
