"""Any torch optimizer over parameters, behind the interface of kftune's."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kftune.optim.interface import ModelOptimizer, StepHook
from kftune.optim.states import Kept


class TorchOptimizer(ModelOptimizer):
    """A :class:`torch.optim.Optimizer` that is stepped from accumulated closures.

    Groups, defaults and state are the wrapped optimizer's own, so learning-rate schedulers and ``add_param_group``
    act on it. Its ``step()`` is called without a closure, once per update, with mean gradients in ``.grad``.

    Args:
        model: the network.
        optimizer: over parameters of ``model``, all or some.

    Raises:
        ValueError: ``optimizer`` needs a closure in its ``step``, or has parameters that are not the model's.
    """

    takes_complex = True

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        check_step(type(optimizer))
        names = {parameter: name for name, parameter in model.named_parameters()}
        if any(p not in names for group in optimizer.param_groups for p in group["params"]):
            raise ValueError(f"optimizer ({type(optimizer).__name__}) has parameters that are not the model's")
        super().__init__(model, {})
        self._names = names
        self._wrapped = optimizer
        self._share()

    def _share(self) -> None:
        """Whoever reads or changes groups and state here does so there."""
        self.defaults, self.param_groups, self.state = (
            self._wrapped.defaults,
            self._wrapped.param_groups,
            self._wrapped.state,
        )

    def _begin(self) -> None:
        super()._begin()
        for parameter in self._names:  # those that the wrapped optimizer leaves out would add up for ever
            parameter.grad = None

    def _gradient_holders(self) -> list[Tensor]:
        return list(self._names)

    def _step_hooks(self) -> tuple[list[StepHook], list[StepHook]]:
        # Those of all optimizers run when the wrapped one steps.
        return [*self._optimizer_step_pre_hooks.values()], [*self._optimizer_step_post_hooks.values()]

    def _update(self) -> None:
        with self.phases.phase("update"):
            self._wrapped.step()

    def coverage(self) -> dict[str, str]:
        """Parameter name → the optimizer's class, ``"frozen"``, or ``"not updated"`` if it leaves it out."""
        updated = {p for group in self.param_groups for p in group["params"]}
        rule = type(self._wrapped).__name__
        return {
            name: ("frozen" if not p.requires_grad else rule if p in updated else "not updated")
            for p, name in self._names.items()
        }

    # State.

    def _parameter_names(self) -> list[list[str]]:
        return [[self._names[p] for p in group["params"]] for group in self.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's with the parameters' names, as :meth:`ModelOptimizer.state_dict` says."""
        state = {**super().state_dict(), **copy.deepcopy(self._wrapped.state_dict())}
        groups = zip(state["param_groups"], self._parameter_names(), strict=True)
        return state | {"param_groups": [group | {"param_names": names} for group, names in groups]}

    def _kept_as(self, parameter: nn.Parameter, key: str, value: Tensor) -> Kept:
        # What others keep can have any shape; what torch's keep is a number, or broadcasts to the parameter's shape.
        is_torchs = type(self._wrapped).__module__.startswith("torch.optim")
        if not is_torchs or value.ndim != parameter.ndim:
            return Kept(None, value.dtype)
        shape = (1 if n == 1 else m for n, m in zip(value.shape, parameter.shape, strict=True))
        return Kept(tuple(shape), value.dtype)

    def _load_torch_state(self, state_dict: dict[str, Any]) -> None:
        # Whoever wrapped an optimizer of unnamed parameters finds it so afterwards.
        named = ["param_names" in group for group in self._wrapped.param_groups]
        groups = [
            group if has_names else {key: value for key, value in group.items() if key != "param_names"}
            for group, has_names in zip(state_dict["param_groups"], named, strict=True)
        ]
        try:
            self._wrapped.load_state_dict(state_dict | {"param_groups": groups})
        finally:
            self._share()


def check_step(cls: Callable[..., Any]) -> None:
    """Refuse an optimizer whose ``step`` cannot be called without a closure.

    Raises:
        ValueError: it says why.
    """
    step = getattr(cls, "step", None)
    arguments = list(inspect.signature(step).parameters.values())[1:] if step is not None else []
    if any(a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD) for a in arguments):
        raise ValueError(
            f"{cls.__name__} evaluates a closure inside its step, as often as it likes; "
            "an update here is one pass forward and backward, then step() without a closure"
        )
