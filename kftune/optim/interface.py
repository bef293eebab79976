"""What every optimizer of kftune is: a torch optimizer over a model, fed with closures that return (loss, output)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from kftune.errors import DivergenceError
from kftune.optim.closures import checked
from kftune.optim.linalg.finite import all_finite
from kftune.optim.saving import SavableOptimizer
from kftune.optim.updates.buffers import RunningStatistics

Closure: TypeAlias = Callable[[], tuple[Tensor, Tensor]]
"""Runs the model forward on one micro-batch; returns (mean loss, output). It does not call ``backward``."""

Phase: TypeAlias = Literal["forward_backward", "statistics", "inversion", "preconditioning", "update"]
"""Where the seconds of a step go. Nested phases are exclusive: the inner one's time is not the outer one's."""


StepHook: TypeAlias = Callable[[torch.optim.Optimizer, tuple[Any, ...], dict[str, Any]], Any]
"""Of torch's ``register_step_pre_hook`` and ``register_step_post_hook``."""

_GROUP_READINGS = ("lr", "damping", "momentum")


class PhaseTimer(Protocol):
    """Receives the phases of a step; :class:`kftune.training.loop.clock.Clock` is one."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Attribute the time inside the ``with`` block to ``name``."""
        ...


class _NoTimer:
    def phase(self, name: Phase) -> AbstractContextManager[None]:
        return nullcontext()


class ModelOptimizer(SavableOptimizer):
    """Base of kftune's optimizers: accumulation of micro-batches, the finiteness check, phases, exact state.

    A subclass implements :meth:`_update` and :meth:`coverage`. One that keeps more than ``self.state`` also implements
    :meth:`_extra_state` and :meth:`_load_extra_state`; one that gathers statistics from the model overrides
    :meth:`_forward_backward`, forgets them in :meth:`_begin` and shows them in :meth:`_batch_statistics`.

    An update that is refused leaves the optimizer as it was before its first micro-batch, bit for bit. So whatever
    :meth:`_extra_state` names is replaced, never changed in place, and ``self.state`` only changes when nothing can be
    refused any more, after :meth:`_commit`. The running statistics of batch normalisation, which the forward pass has
    changed, are put back too; whatever else a forward pass changes is the model's own affair.

    Args:
        model: the network; all its parameters belong to the optimizer, frozen ones stay as they are.
        defaults: hyperparameters of the parameter group.
        likelihood: the model's predictive distribution, for checks of what closures return; None if it does not matter.

    Attributes:
        phases: where the time of a step is reported to; nothing by default.
    """

    phases: PhaseTimer

    adapts: tuple[str, ...] = ()
    """Hyperparameters of the groups that the method itself changes from update to update."""

    averages_squares: ClassVar[bool] = False
    """Whether squares of gradients enter averages: a gradient whose squares overflow is then refused."""

    takes_complex: ClassVar[bool] = False
    """Whether parameters may be complex."""

    def __init__(self, model: nn.Module, defaults: dict[str, Any], *, likelihood: str | None = None) -> None:
        super().__init__(model.named_parameters(), defaults)
        self._likelihood = likelihood
        self._watched: list[Tensor] | None = None  # whose gradients closures must leave alone; None for all
        self.phases = _NoTimer()
        self._n_examples = 0
        self._n_before = 0  # examples of the update's micro-batches before the one that runs
        self._single = False  # whether the closure that runs is all of its update, and nobody sees ``.grad`` before it
        self._loss_sum: Tensor | None = None
        self._tallies: dict[str, tuple[Tensor | float, int]] = {}
        self._undo: tuple[dict[str, Any], dict[str, tuple[Tensor | float, int]]] | None = None
        self._running_statistics = RunningStatistics(model)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's.

        Raises:
            ValueError: a parameter is complex.
        """
        super().add_param_group(param_group)
        if not self.takes_complex:
            group = self.param_groups[-1]
            for name, p in zip(group["param_names"], group["params"], strict=True):
                if p.is_complex():
                    self.param_groups.pop()
                    raise ValueError(f"parameter {name!r} is of {p.dtype}: {type(self).__name__} takes real ones only")

    def expect(self, likelihood: str) -> None:
        """Say what the model's output stands for: an output that cannot be it is then refused."""
        self._likelihood = likelihood

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("phases", _NoTimer())

    def accumulate(self, closure: Closure) -> Tensor:
        """Add one micro-batch: its gradient and, where they are due, its curvature statistics.

        k micro-batches followed by :meth:`step` give the update of one batch of their union (to rounding), each
        weighted with its number of examples (the output's first dimension), as long as no layer mixes examples. Between
        the two ``.grad`` is the gradient of the mean loss of all examples so far, for whoever clips or looks at it.
        If the closure raises, everything accumulated for this update is dropped, and the optimizer is as it was before.

        A method that adapts itself (:class:`~kftune.optim.methods.kfac.KFAC` with ``rescale``) runs the closures again
        at :meth:`step`. Each must then still be the same computation on the same batch. In a loop that is ``def
        closure(xb=xb, yb=yb)``: names of the loop would all stand for the last batch by then.

        Args:
            closure: see :data:`Closure`.

        Returns:
            The micro-batch's mean loss, detached, on its device.

        Raises:
            TypeError: the closure returned something else.
            ValueError: the closure returned other shapes, an empty batch, a loss without a graph, or changed ``.grad``.
            DivergenceError: never here; :meth:`step` checks the sum.
        """
        if self._n_examples == 0:
            self._begin()
        self._n_before, self._n_examples = self._n_examples, 0
        try:
            with torch.enable_grad(), self.phases.phase("forward_backward"):
                loss, n_examples = self._forward_backward(checked(closure, self._likelihood, self._watch()))
        except BaseException:
            self._roll_back()
            raise
        if self._watched is None:
            self._watched = sorted(self._watch(), key=lambda p: p.grad is None)[:1]
        weighted = loss.detach() * n_examples
        self._loss_sum = weighted if self._loss_sum is None else self._loss_sum + weighted
        self._n_examples = self._n_before + n_examples
        return loss.detach()

    def _watch(self) -> list[Tensor]:
        """Parameters on which a closure that goes backward by itself is noticed: all the first time, then one."""
        if self._watched is not None:
            return self._watched
        return [p for p in self._gradient_holders() if p.requires_grad]

    def _begin(self) -> None:
        """Forget gradients and whatever else belongs to a single update."""
        self.zero_grad(set_to_none=True)
        self._loss_sum = None
        self._undo = self._extra_state(), dict(self._tallies)
        self._running_statistics.remember()

    def _commit(self) -> None:
        """Say that from here on the update cannot be refused: parameters and state are about to change in place."""
        self._undo = None

    def _roll_back(self) -> None:
        """Be as before the update, unless it was committed."""
        if self._undo is not None:
            extra, self._tallies = self._undo
            self._load_extra_state(extra)
            self._running_statistics.restore()
            self._undo = None

    def _forward_backward(self, closure: Closure) -> tuple[Tensor, int]:
        """Run the closure, then :meth:`_backward`; returns the mean loss and the number of examples."""
        loss, output = closure()
        self._backward(loss, len(output))
        return loss, len(output)

    def _backward(self, loss: Tensor, n_examples: int) -> None:
        """Take the gradient of the mean loss into ``.grad``, which is a mean over examples before and after it.

        A single micro-batch, the usual case, needs no pass over the gradients to scale them.
        """
        before = self._n_before
        if before:
            total = before + n_examples
            self._scale_gradients(before / total)
            loss = loss * (n_examples / total)
        torch.autograd.backward(loss)

    @torch.no_grad()
    def _scale_gradients(self, factor: float) -> None:
        held = [p for p in self._gradient_holders() if p.grad is not None]
        _densify(held)
        gradients = [p.grad for p in held if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)

    def _gradient_holders(self) -> list[Tensor]:
        """The parameters whose ``.grad`` belongs to the update."""
        return [p for group in self.param_groups for p in group["params"]]

    # The closure of kftune returns (loss, output), torch's a loss.
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Update the parameters once, from what was accumulated and from ``closure`` if given.

        Hooks of ``register_step_pre_hook`` and ``register_step_post_hook`` find the gradient of this update in
        ``.grad``; the former may change it.

        Returns:
            The mean loss over all micro-batches of this update, detached, on its device.

        Raises:
            DivergenceError: if the loss, a gradient or what the batch adds to an average is not finite. The parameters
                are untouched, and so is the optimizer: the next update is as if this one's batch had not been.
            CurvatureError: as :class:`DivergenceError`, for curvature that cannot be inverted.
            RuntimeError: if nothing was accumulated and no closure given.
        """
        with torch.autograd.profiler.record_function(f"Optimizer.step#{type(self).__name__}.step"):
            return self._hooked_step(closure)

    # torch would run hooks before a closure has made the gradient that they are to see; this mark tells it not to.
    step.hooked = True  # type: ignore[attr-defined]  # functions are not annotated as having attributes

    def _step_hooks(self) -> tuple[list[StepHook], list[StepHook]]:
        """What runs before an update, and what after it, as torch's optimizers have it."""
        if type(self).step is not ModelOptimizer.step:
            return [], []  # torch runs them round a step of the subclass' own
        before = [*_global_optimizer_pre_hooks.values(), *self._optimizer_step_pre_hooks.values()]
        return before, [*self._optimizer_step_post_hooks.values(), *_global_optimizer_post_hooks.values()]

    def _hooked_step(self, closure: Closure | None) -> Tensor:
        before, after = self._step_hooks()
        if closure is not None:
            # Nobody must look at gradients in between for them to be left out.
            self._single = self._n_examples == 0 and not before and not after
            try:
                self.accumulate(closure)
            finally:
                self._single = False
        if self._n_examples == 0 or self._loss_sum is None:
            raise RuntimeError("nothing to step from: call step(closure), or accumulate(closure) before step()")
        loss = self._loss_sum / self._n_examples
        given = (self,) if closure is None else (self, closure)
        try:
            for hook in before:
                if hook(self, given, {}) is not None:
                    raise RuntimeError("a step pre-hook cannot exchange the closure, which was run already")
            self._n_examples, self._loss_sum = 0, None
            with torch.no_grad():
                self._check_batch(loss)
                self._update()
        except BaseException:
            self._n_examples, self._loss_sum = 0, None
            self._roll_back()
            raise
        self._undo = None
        for hook in after:
            hook(self, given, {})
        return loss

    def _check_batch(self, loss: Tensor) -> None:
        """Refuse a batch that is not finite, by one host synchronisation for everything.

        Raises:
            DivergenceError: it says what of the batch is not finite.
        """
        _densify(self._gradient_holders())
        gradients, statistics = self._gradient_tensors(), self._batch_statistics()
        with self.phases.phase("update"):
            if all_finite([loss, *gradients, *statistics], squares=self.averages_squares):
                return
            if not torch.isfinite(loss):
                what = "the loss"
            elif not all_finite([loss, *gradients]):
                what = "a gradient"
            else:
                what = self._bad_statistic() or "a square of a gradient"
            raise DivergenceError(
                f"{what} is not finite for this update's batch (loss {loss.item():.4g}); the parameters are unchanged"
            )

    def _batch_statistics(self) -> list[Tensor]:
        """What this update's batch adds to averages besides its gradient: where it is not finite, the batch is refused.

        For a positive semi-definite matrix its diagonal will do, which bounds all entries.
        """
        return []

    def _bad_statistic(self) -> str | None:
        """Which of them is not finite, for the error; None if they all are."""
        return None

    def _gradient_tensors(self) -> list[Tensor]:
        """Everything that holds a part of the accumulated gradient."""
        return [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]

    @abstractmethod
    def _update(self) -> None:
        """Change the parameters, given mean gradients in ``.grad``. Runs under ``no_grad``."""

    def readings(self) -> dict[str, float]:
        """What the method says of itself, by name; for plots, no part of the state.

        ``lr``, ``damping`` and ``momentum``, where its groups have them, are the means over the groups now. Everything
        else is a mean over the updates since the previous call, and missing if there were none: ``kl_clip_active`` (the
        share of them that the clip shortened) and ``kl_clip_scale`` (what it multiplied them with) of methods with a KL
        clip that is in use, and whatever a method records besides.
        """
        values: dict[str, float] = {}
        for name in _GROUP_READINGS:
            # Somebody else's optimizer may mean something else by the name.
            found = [group[name] for group in self.param_groups if isinstance(group.get(name), int | float | Tensor)]
            if found:
                values[name] = sum(map(float, found)) / len(found)
        values |= {name: float(total) / n for name, (total, n) in self._tallies.items()}
        self._tallies.clear()
        return values

    def _record(self, name: str, value: Tensor | float) -> None:
        """Add to a mean that :meth:`readings` reports; a tensor stays on its device until then."""
        total, n = self._tallies.get(name, (0.0, 0))
        self._tallies[name] = (total + value, n + 1)

    def evaluation_parameters(self) -> AbstractContextManager[None]:
        """Inside the block the model holds the parameters that the method says to evaluate: the current ones, unless
        it averages its iterates. Afterwards training goes on as if nothing had happened.
        """
        return nullcontext()

    @abstractmethod
    def coverage(self) -> dict[str, str]:
        """Parameter name → what is done to it (e.g. ``"Kronecker-factored"``, ``"SGD"``, ``"frozen"``), every one."""

    def _coverage(self, default: str, by_parameter: Mapping[nn.Parameter, str] | None = None) -> dict[str, str]:
        """Name → ``"frozen"``, else what ``by_parameter`` says, else ``default``."""
        said = by_parameter or {}
        return {
            name: said.get(p, default) if p.requires_grad else "frozen"
            for group in self.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        }

    def _is_half_done(self) -> bool:
        return self._n_examples > 0

    def _forget_update(self) -> None:
        self._n_examples, self._loss_sum = 0, None


def _densify(parameters: Iterable[Tensor]) -> None:
    """Write out gradients of ``nn.Embedding(sparse=True)``: norms, averages and factors are of dense ones."""
    for p in parameters:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = p.grad.to_dense()
