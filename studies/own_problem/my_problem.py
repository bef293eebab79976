"""A problem of one's own: a model and data that kftune knows nothing about.

A study file names ``my_problem:make_problem``; kftune calls it in every run's own process with the device, the dtype,
the data directory and the study file's ``args``, and gets everything that a run needs.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from kftune.problems import Problem, Split


class Branches(nn.Module):
    """Two branches over one input, added: any ``nn.Module`` will do."""

    def __init__(self, n_inputs: int, width: int) -> None:
        super().__init__()
        self.straight = nn.Linear(n_inputs, 1)
        self.curved = nn.Sequential(nn.Linear(n_inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.out = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (N, 1) of inputs (N, n_inputs)."""
        return self.straight(inputs) + self.out(self.curved(inputs))


def make_data(n: int, *, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A curved function of eight numbers, observed with noise: inputs (n, 8), targets (n, 1)."""
    inputs = torch.rand(n, 8, generator=generator, dtype=torch.float64) * 2 - 1
    clean = torch.sin(4 * inputs[:, 0] * inputs[:, 1]) + inputs[:, 2] ** 2 - inputs[:, 3] * inputs[:, 4].abs()
    return inputs, (clean + noise * torch.randn(n, generator=generator, dtype=torch.float64)).unsqueeze(1)


def make_problem(
    *, device: torch.device, dtype: torch.dtype, data_dir: Path, width: int = 32, noise: float = 0.05
) -> Problem:
    """Everything about the problem; the tensors lie on the device, so that no loader is timed.

    Args:
        device: of the run.
        dtype: of the run.
        data_dir: where files of data would be (not used here).
        width: of the hidden layers; ``args: {width: 64}`` in the study file changes it.
        noise: standard deviation of the targets' noise.
    """
    generator = torch.Generator().manual_seed(0)  # the data are the same in every run; its seed is for the weights
    train, test = (
        Split(*(tensor.to(device=device, dtype=dtype) for tensor in make_data(n, noise=noise, generator=generator)))
        for n in (4000, 1000)
    )
    return Problem(
        name="branches",
        train=train,
        test=test,
        make_model=lambda: Branches(8, width),
        loss=nn.functional.mse_loss,
        likelihood="gaussian",
    )
