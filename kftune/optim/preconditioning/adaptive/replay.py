"""The closures of an update, run again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.distributed import mean_over_processes, process_group_of
from kftune.optim.interface import Closure
from kftune.optim.preconditioning.adaptive.quadratic_model import Direction, fisher_products

_SAME_LOSS = 1e-2  # relative: fused attention and convolutions may be computed in another way the second time
_SMALL_LOSS = 1e-3  # below it rounding of the outputs counts


class _Run(NamedTuple):
    """One micro-batch of an update."""

    closure: Closure
    random: tuple[Tensor, Tensor | None]
    loss: Tensor
    n_examples: int


class Replay:
    """The closures of one update, run again: on the same random numbers, and leaving random state and buffers alone.

    Under DistributedDataParallel, what comes back is the mean over all processes, of as many examples each.

    Args:
        model: the network that the closures run.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._process_group = process_group_of(model)
        self._runs: list[_Run] = []

    def random_state(self) -> tuple[Tensor, Tensor | None]:
        """What :meth:`add` needs, from before the closure ran."""
        device = self._device()
        return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def add(self, closure: Closure, random: tuple[Tensor, Tensor | None], loss: Tensor, n_examples: int) -> None:
        """Remember a closure that has just been run."""
        self._runs.append(_Run(closure, random, loss.detach(), n_examples))

    def clear(self) -> None:
        """Forget the closures, and with them their batches."""
        self._runs = []

    def fisher_products(self, directions: Sequence[Direction], likelihood: Likelihood) -> tuple[Tensor, Tensor]:
        """DᵀFD of all examples, (k, k) in float64 on the device, and whether a closure has another loss than before.

        The second is a number in float64 on the device, above 0 if so (in any process). The parameters must still be
        what they were when the closures ran.
        """
        found: list[Tensor] = []
        differs: list[Tensor] = []
        for run in self._runs:
            # Fused attention cannot be differentiated twice.
            with self._again(run), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                loss, output = run.closure()
                with _hooks_aside(p for direction in directions for p in direction):
                    found.append(fisher_products(output, directions, likelihood))
            differs.append(losses_differ(run.loss, loss.detach()))
        if not found:
            raise RuntimeError("there is no closure to run again")
        total = torch.stack(found).sum(dim=0)
        means = self._mean(torch.cat([total.flatten(), torch.stack(differs).sum(dim=0, keepdim=True)]))
        return means[:-1].view_as(total), means[-1]

    @torch.no_grad()
    def loss_change(self) -> Tensor:
        """The mean loss over all examples now, less what it was when the closures ran; float64 on the device."""
        changes = []
        for run in self._runs:
            # A loss may differentiate by its inputs: it is run as it was.
            with self._again(run), torch.enable_grad():
                loss = run.closure()[0].detach()
            changes.append((loss.double() - run.loss.double()) * run.n_examples)
        return self._mean(torch.stack(changes).sum())

    def _mean(self, total: Tensor) -> Tensor:
        mean = total / sum(run.n_examples for run in self._runs)
        if self._process_group is not None:
            mean_over_processes([mean], self._process_group)
        return mean

    @contextmanager
    def _again(self, run: _Run) -> Iterator[None]:
        """Inside the block the random numbers are those of ``run``, and the model's buffers are copies."""
        modules = list(self._model.modules())
        buffers = [(m, name, buffer) for m in modules for name, buffer in m.named_buffers(recurse=False)]
        devices = [] if run.random[1] is None else [self._device()]
        with torch.random.fork_rng(devices=devices), ExitStack() as unsynchronised:
            for module in modules:
                if isinstance(module, DistributedDataParallel):  # waits for a backward pass, and shares the buffers
                    unsynchronised.enter_context(module.no_sync())
            torch.set_rng_state(run.random[0])
            if run.random[1] is not None:
                torch.cuda.set_rng_state(run.random[1], self._device())
            try:
                for module, name, buffer in buffers:
                    module._buffers[name] = buffer.clone()
                yield
            finally:
                for module, name, buffer in buffers:
                    module._buffers[name] = buffer


@contextmanager
def _hooks_aside(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside the block hooks on parameters' gradients stand aside: they are for the gradient, not for the curvature."""
    hooked = [(p, p._backward_hooks) for p in dict.fromkeys(parameters) if p._backward_hooks]
    try:
        for p, _ in hooked:
            p._backward_hooks = None
        yield
    finally:
        for p, hooks in hooked:
            p._backward_hooks = hooks


def losses_differ(before: Tensor, now: Tensor) -> Tensor:
    """Whether two losses differ by more than rounding; what is not finite is another matter."""
    before, now = before.double(), now.double()
    return (now - before).abs() > _SAME_LOSS * (torch.maximum(before.abs(), now.abs()) + _SMALL_LOSS)
