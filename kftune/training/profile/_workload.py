"""What every contestant does a step of: one model, one loss, the same few batches."""

from __future__ import annotations

import copy
import itertools
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from kftune._version import __version__
from kftune.errors import UsageError
from kftune.optim import ModelOptimizer
from kftune.optim.costs.sizes import LayerSize, layer_sizes
from kftune.problems import problem_with
from kftune.training.data.batches import ShuffledIndices
from kftune.training.host import device_name
from kftune.training.profile._results import Machine, ProfileSpec

_N_BATCHES = 4
_LR, _MOMENTUM = 0.01, 0.9


class Workload:
    """A problem on its device, and steps over it.

    Batches are drawn once and used in turn: fetching them is no optimizer's work and is not timed.

    Args:
        spec: problem, batch size, device.

    Raises:
        UsageError: an unknown problem, missing data, a wrong argument, or a batch size beyond the training set.
    """

    def __init__(self, spec: ProfileSpec) -> None:
        entry = problem_with(spec.problem, spec.problem_args)
        if not 1 <= spec.batch_size <= entry.n_train:
            raise UsageError(
                f"batch size must be between 1 and the {entry.n_train} training examples of {entry.name}, "
                f"got {spec.batch_size}"
            )
        self.device = torch.device(spec.device)
        dtype = {"float32": torch.float32, "float64": torch.float64}[spec.dtype]
        self.problem = entry.load(
            device=self.device, dtype=dtype, data_dir=Path(spec.data_dir), **dict(spec.problem_args)
        )
        torch.manual_seed(spec.seed)
        self._model = self.problem.make_model().to(device=self.device, dtype=dtype).train()
        indices = ShuffledIndices(len(self.problem.train), seed=spec.seed, device=self.device)
        self._batches = [self._batch(indices.take(spec.batch_size)) for _ in range(_N_BATCHES)]

    def _batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        train = self.problem.train
        inputs = train.inputs.index_select(0, indices)
        return inputs, inputs if train.targets is train.inputs else train.targets.index_select(0, indices)

    @property
    def n_parameters(self) -> int:
        """Of the model, frozen ones included."""
        return sum(p.numel() for p in self._model.parameters())

    def make_model(self) -> nn.Module:
        """A copy of the untrained model."""
        return copy.deepcopy(self._model)

    def layers(self) -> tuple[LayerSize, ...]:
        """Sizes of the trained linear and convolutional layers."""
        model = self.make_model()
        with torch.no_grad():
            return layer_sizes(model, lambda: model(self._batches[0][0]))

    def sgd_step(self, model: nn.Module) -> Callable[[], None]:
        """A step of :class:`torch.optim.SGD` with Nesterov momentum, as one writes it without kftune."""
        optimizer = torch.optim.SGD(model.parameters(), lr=_LR, momentum=_MOMENTUM, nesterov=True)
        batches, loss_of = itertools.cycle(self._batches), self.problem.loss

        def step() -> None:
            inputs, targets = next(batches)
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(model(inputs), targets))
            optimizer.step()

        return step

    def optimizer_step(self, model: nn.Module, optimizer: ModelOptimizer) -> Callable[[], None]:
        """A step of one of kftune's optimizers."""
        batches, loss_of = itertools.cycle(self._batches), self.problem.loss

        def step() -> None:
            inputs, targets = next(batches)

            def closure() -> tuple[Tensor, Tensor]:
                output = model(inputs)
                return loss_of(output, targets), output

            optimizer.step(closure)

        return step

    def wait(self) -> None:
        """Return when the device has done all that was queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def machine(device: torch.device) -> Machine:
    """This machine, as far as it matters for the time of a step."""
    return Machine(
        device=str(device),
        device_name=device_name(device),
        cpu=device_name(torch.device("cpu")),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        kftune=__version__,
    )
