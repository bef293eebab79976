"""Any torch optimizer over parameters, behind the interface of kftune's."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kftune.optim.interface import ModelOptimizer


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

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's, as :meth:`ModelOptimizer.state_dict` says."""
        return {**super().state_dict(), **self._wrapped.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As :meth:`ModelOptimizer.load_state_dict`; the wrapped optimizer loads its own."""
        try:
            super().load_state_dict(state_dict)
            own = copy.deepcopy({key: value for key, value in state_dict.items() if key != "extra"})
            self._wrapped.load_state_dict(own)
        finally:
            self._share()
        self._restore_types(own)

    def _restore_types(self, saved: dict[str, Any]) -> None:
        """torch casts every loaded tensor to its parameter's type; what was kept in another goes on in that one."""
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            state = self.state.get(parameter, {})
            for key, value in saved["state"].get(number, {}).items():
                loaded = state.get(key)
                if isinstance(loaded, Tensor) and isinstance(value, Tensor) and loaded.dtype != value.dtype:
                    state[key] = value.to(loaded.device)


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
