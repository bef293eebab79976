"""What every optimizer of kftune is: a torch optimizer over a model, fed with closures that return (loss, output)."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from kftune.errors import DivergenceError
from kftune.space import Space, Value

Closure: TypeAlias = Callable[[], tuple[Tensor, Tensor]]
"""Runs the model forward on one micro-batch; returns (mean loss, output). It does not call ``backward``."""

Likelihood: TypeAlias = Literal["categorical", "gaussian", "bernoulli"]
"""The model's predictive distribution: ``categorical`` (logits, cross-entropy over classes in the last dimension),
``gaussian`` (``mse_loss(reduction="mean")``), ``bernoulli`` (logits, ``binary_cross_entropy_with_logits`` mean over
examples *and* outputs)."""

Phase: TypeAlias = Literal["forward_backward", "statistics", "inversion", "preconditioning", "update"]
"""Where the seconds of a step go. Nested phases are exclusive: the inner one's time is not the outer one's."""


_GROUP_READINGS = ("lr", "damping", "momentum")


class PhaseTimer(Protocol):
    """Receives the phases of a step; :class:`kftune.training.loop.clock.Clock` is one."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Attribute the time inside the ``with`` block to ``name``."""
        ...


class _NoTimer:
    def phase(self, name: Phase) -> AbstractContextManager[None]:
        return nullcontext()


class ModelOptimizer(torch.optim.Optimizer):
    """Base of kftune's optimizers: accumulation of micro-batches, the finiteness check, phases, exact state.

    A subclass implements :meth:`_update` and :meth:`coverage`. One that keeps more than ``self.state`` also implements
    :meth:`_extra_state` and :meth:`_load_extra_state`; one that gathers statistics from the model overrides
    :meth:`_forward_backward` and forgets them in :meth:`_begin`.

    Args:
        model: the network; all its parameters belong to the optimizer, frozen ones stay as they are.
        defaults: hyperparameters of the parameter group.

    Attributes:
        phases: where the time of a step is reported to; nothing by default.
    """

    phases: PhaseTimer

    def __init__(self, model: nn.Module, defaults: dict[str, Any]) -> None:
        super().__init__(model.named_parameters(), defaults)
        self.phases = _NoTimer()
        self._n_examples = 0
        self._unit = 1  # examples of the update's first micro-batch
        self._single = False  # whether the closure that runs is all of its update, and nobody sees ``.grad`` before it
        self._loss_sum: Tensor | None = None
        self._tallies: dict[str, tuple[Tensor | float, int]] = {}

    def accumulate(self, closure: Closure) -> Tensor:
        """Add one micro-batch: its gradient and, where they are due, its curvature statistics.

        k micro-batches followed by :meth:`step` give the update of one batch of their union (to rounding), each
        weighted with its number of examples (the output's first dimension), as long as no layer mixes examples.
        If the closure raises, everything accumulated for this update is dropped.

        A method that adapts itself (:class:`~kftune.optim.methods.kfac.KFAC` with ``rescale``) runs the closures again
        at :meth:`step`. Each must then still be the same computation on the same batch. In a loop that is ``def
        closure(xb=xb, yb=yb)``: names of the loop would all stand for the last batch by then.

        Args:
            closure: see :data:`Closure`.

        Returns:
            The micro-batch's mean loss, detached, on its device.

        Raises:
            DivergenceError: never here; :meth:`step` checks the sum.
        """
        if self._n_examples == 0:
            self._begin()
        so_far, self._n_examples = self._n_examples, 0
        with torch.enable_grad(), self.phases.phase("forward_backward"):
            loss, n_examples = self._forward_backward(closure)
        weighted = loss.detach() * n_examples
        self._loss_sum = weighted if self._loss_sum is None else self._loss_sum + weighted
        self._n_examples = so_far + n_examples
        return loss.detach()

    def _begin(self) -> None:
        """Forget gradients and whatever else belongs to a single update."""
        self.zero_grad(set_to_none=True)
        self._loss_sum = None

    def _forward_backward(self, closure: Closure) -> tuple[Tensor, int]:
        """Run the closure, then :meth:`_backward`; returns the mean loss and the number of examples."""
        loss, output = closure()
        self._backward(loss, len(output))
        return loss, len(output)

    def _backward(self, loss: Tensor, n_examples: int) -> None:
        """Add ``n_examples / unit``·(gradient of the mean loss) to ``.grad``; the unit is the first micro-batch's size.

        So a single micro-batch, the usual case, needs no pass over the gradients to scale them.
        """
        if self._loss_sum is None:
            self._unit = n_examples
        torch.autograd.backward(loss if n_examples == self._unit else loss * (n_examples / self._unit))

    # The closure of kftune returns (loss, output), torch's a loss.
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Update the parameters once, from what was accumulated and from ``closure`` if given.

        Returns:
            The mean loss over all micro-batches of this update, detached, on its device.

        Raises:
            DivergenceError: if the loss or a gradient is not finite; the parameters are untouched.
            RuntimeError: if nothing was accumulated and no closure given.
        """
        if closure is not None:
            self._single = self._n_examples == 0
            try:
                self.accumulate(closure)
            finally:
                self._single = False
        if self._n_examples == 0 or self._loss_sum is None:
            raise RuntimeError("nothing to step from: call step(closure), or accumulate(closure) before step()")
        loss = self._loss_sum / self._n_examples
        self._densify_gradients()
        gradients = self._gradient_tensors()
        with torch.no_grad():
            with self.phases.phase("update"):
                if gradients and self._n_examples != self._unit:
                    torch._foreach_mul_(gradients, self._unit / self._n_examples)
                self._n_examples, self._loss_sum = 0, None
                if not all_finite([loss, *gradients]):
                    what = "the loss" if not torch.isfinite(loss) else "a gradient"
                    raise DivergenceError(
                        f"{what} is not finite (loss {loss.item():.4g}); the parameters are unchanged"
                    )
            self._update()
        return loss

    def _densify_gradients(self) -> None:
        """Write out gradients of ``nn.Embedding(sparse=True)``: norms, averages and factors are of dense ones."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_sparse:
                    p.grad = p.grad.to_dense()

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

    def state_dict(self) -> dict[str, Any]:
        """torch's, with everything else a bit-equal continuation needs under ``"extra"``.

        Raises:
            RuntimeError: between :meth:`accumulate` and :meth:`step`; half an update cannot be saved.
        """
        if self._n_examples:
            raise RuntimeError("state_dict() between accumulate() and step() would lose what was accumulated")
        return super().state_dict() | {"extra": {"optimizer": type(self).__name__, **self._extra_state()}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`; it is copied, not shared, and goes to the parameters' device.

        Raises:
            ValueError: if it belongs to another optimizer or another model.
        """
        own = copy.deepcopy(dict(state_dict))
        extra = own.pop("extra", None)
        if extra is None:
            raise ValueError("this state_dict was not made by a kftune optimizer: it has no 'extra'")
        if extra["optimizer"] != type(self).__name__:
            raise ValueError(f"the state_dict is one of {extra['optimizer']}, this optimizer is {type(self).__name__}")
        self._check_extra_state(extra)
        super().load_state_dict(own)
        self._load_extra_state(extra)
        self._n_examples, self._loss_sum = 0, None

    def _extra_state(self) -> dict[str, Any]:
        """Plain data and tensors beyond ``self.state`` and the groups."""
        return {}

    def _check_extra_state(self, extra: dict[str, Any]) -> None:
        """Refuse, before anything is changed, what :meth:`_load_extra_state` cannot take.

        Raises:
            ValueError: it says why.
        """

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        """Inverse of :meth:`_extra_state`; ``extra`` belongs to this optimizer alone."""


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether no entry of any tensor is inf or nan, by one host synchronisation for all of them."""
    # The Euclidean norm is 15 times faster than the largest magnitude on a CPU, but can overflow where no entry does.
    for ord_ in (2.0, math.inf):
        norms = torch._foreach_norm(tensors, ord=ord_)
        if bool(torch.isfinite(torch.stack([norm.to(norms[0]) for norm in norms])).all()):
            return True
    return False


def check_range(
    name: str, value: float, *, low: float = 0.0, high: float = math.inf, low_in: bool = True, high_in: bool = False
) -> None:
    """Refuse a number outside an interval, or nan.

    Raises:
        ValueError: it names the argument, the value and the interval.
    """
    inside = (low <= value if low_in else low < value) and (value <= high if high_in else value < high)
    if not inside:
        interval = f"{'[' if low_in else '('}{low:g}, {high:g}{']' if high_in else ')'}"
        raise ValueError(f"{name} must be in {interval}, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of ``choices``.

    Raises:
        ValueError: it names the argument, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_count(name: str, value: int, *, low: int = 1) -> None:
    """Refuse what is not a whole number of at least ``low``.

    Raises:
        ValueError: it names the argument, the value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """What the cost of a layer's curvature depends on, for one update.

    Attributes:
        d_A: side of A.
        d_G: side of G.
        n_rows: rows of A's sample behind one update: examples times positions.
        n_positions: rows of one example.
    """

    d_A: int  # noqa: N815  # the dimension of A
    d_G: int  # noqa: N815  # the dimension of G
    n_rows: int
    n_positions: int = 1


Floor: TypeAlias = Callable[[Sequence[LayerSize], Mapping[str, Any]], Mapping[Phase, float]]
"""(layers, hyperparameters with every default filled in) → floating-point operations that no implementation of the
method can avoid in an average update, by phase, on top of the 6·Σ n_rows·d_A·d_G of forward and backward passes."""


@dataclass(frozen=True, kw_only=True)
class OptimizerEntry:
    """One optimizer of the registry: all that the CLI, the search and the shared tests know of it.

    Attributes:
        name: its name in a study file.
        cls: the class. Called as ``cls(model, likelihood=..., seed=..., **hyperparameters)``.
        summary: one line.
        paper: source, as one would cite it in a line.
        space: default search space, over hyperparameters of ``cls`` and of the training loop
            (``batch_size``, ``effective_batch_size``).
        second_order: whether it uses curvature.
        example: hyperparameters that work on a small, well-scaled problem (shown by ``kftune describe``).
        invalid: (hyperparameters, part of the message) pairs that ``cls`` must refuse with ``ValueError``.
        deterministic: hyperparameters under which an update depends on the examples alone, not on how they are split
            into micro-batches (drawn labels do).
        chains_only: whether it takes nothing but chains of linear layers.
        floor: see :data:`Floor`; None for a method without matrix products of its own.
    """

    name: str
    cls: Callable[..., ModelOptimizer]
    summary: str
    paper: str
    space: Space
    second_order: bool
    example: Mapping[str, Value] = field(default_factory=dict)
    invalid: tuple[tuple[Mapping[str, Any], str], ...] = ()
    deterministic: Mapping[str, Value] = field(default_factory=dict)
    chains_only: bool = False
    floor: Floor | None = None

    def build(
        self, model: nn.Module, *, likelihood: Likelihood, seed: int = 0, params: Mapping[str, Any]
    ) -> ModelOptimizer:
        """An optimizer over ``model`` with these hyperparameters.

        Raises:
            ValueError: an invalid value; the message names the argument, the value and what is allowed.
        """
        return self.cls(model, likelihood=likelihood, seed=seed, **params)


def check_periods(statistics_every: int, inverses_every: int) -> None:
    """Refuse periods that are no counts, and inversions at updates that gather no statistics.

    Raises:
        ValueError: it names both.
    """
    check_count("statistics_every", statistics_every)
    check_count("inverses_every", inverses_every)
    if inverses_every % statistics_every:
        raise ValueError(
            f"inverses_every must be a multiple of statistics_every, got {inverses_every} and {statistics_every}"
        )
