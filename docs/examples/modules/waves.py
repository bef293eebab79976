"""A problem of one's own: a sum of waves of eight numbers, to be learnt by a small network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kftune.problems import Problem, Split


def load(*, device: torch.device, dtype: torch.dtype, data_dir: Path) -> Problem:
    """The problem; every run calls this, and gets the same tensors."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1200, 8, generator=generator, dtype=torch.float64) * 2 - 1
    y = torch.sin(3 * x[:, :4] * x[:, 4:]).sum(dim=1, keepdim=True)
    x, y = (tensor.to(device=device, dtype=dtype) for tensor in (x, y))
    return Problem(
        name="waves",
        likelihood="gaussian",
        make_model=lambda: nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1)),
        loss=nn.functional.mse_loss,
        train=Split(x[:1000], y[:1000]),
        test=Split(x[1000:], y[1000:]),
    )
