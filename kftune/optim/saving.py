"""An optimizer whose state is saved whole, and loaded only where it fits."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kftune.optim.states import Kept, by_name, check_shape, in_own_order, tensors_in

_NOT_COPIED = frozenset(
    {
        "phases",  # whoever keeps the time does it for the original
        "step",  # as learning-rate schedulers wrap it: bound to the original
        "_opt_called",
        "_optimizer_step_pre_hooks",
        "_optimizer_step_post_hooks",
        "_optimizer_state_dict_pre_hooks",
        "_optimizer_state_dict_post_hooks",
        "_optimizer_load_state_dict_pre_hooks",
        "_optimizer_load_state_dict_post_hooks",
    }
)


class SavableOptimizer(torch.optim.Optimizer):
    """A torch optimizer with more state than ``self.state``: :meth:`_extra_state`, and what it means to load it.

    Whatever is kept of a parameter is told apart by the parameter's name, whatever is kept of a layer by the layer's.
    """

    def __getstate__(self) -> dict[str, Any]:
        """All that a copy or a pickle needs to go on by itself; as torch's, without hooks and schedulers' wrappers.

        Raises:
            RuntimeError: between ``accumulate()`` and ``step()``.
        """
        if self._is_half_done():
            raise RuntimeError("a copy between accumulate() and step() would lose what was accumulated")
        return {key: value for key, value in self.__dict__.items() if key not in _NOT_COPIED}

    @abstractmethod
    def _is_half_done(self) -> bool:
        """Whether gradients are waiting for a step."""

    @abstractmethod
    def _forget_update(self) -> None:
        """Be as after a step."""

    def state_dict(self) -> dict[str, Any]:
        """torch's, with everything else a bit-equal continuation needs under ``"extra"``.

        Unlike torch's it is a snapshot: no tensor in it is one that the optimizer goes on with.

        Raises:
            RuntimeError: between ``accumulate()`` and ``step()``; half an update cannot be saved.
        """
        if self._is_half_done():
            raise RuntimeError("state_dict() between accumulate() and step() would lose what was accumulated")
        shapes = {name: list(p.shape) for name, p in self._named_parameters().items()}
        extra = {"optimizer": type(self).__name__, "shapes": shapes, **self._extra_state()}
        return copy.deepcopy(super().state_dict() | {"extra": extra})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`; it is copied, not shared, and goes to the parameters' device.

        Parameters are told apart by their names: the model may have registered them in another order. A state without
        names is taken by position.

        Raises:
            ValueError: if it belongs to another optimizer or another model; it names the first parameter, layer or
                tensor that differs. Nothing is changed then.
        """
        own = copy.deepcopy(dict(state_dict))
        extra = own.pop("extra", None)
        if extra is None:
            raise ValueError("this state_dict was not made by a kftune optimizer: it has no 'extra'")
        if extra["optimizer"] != type(self).__name__:
            raise ValueError(f"the state_dict is one of {extra['optimizer']}, this optimizer is {type(self).__name__}")
        names = self._parameter_names()
        own["param_groups"] = in_own_order(own["param_groups"], names)
        saved = by_name(own["param_groups"], names, own["state"])
        self._check_saved(saved, extra.get("shapes", {}))
        self._check_extra_state(extra)
        before = self._extra_state()
        try:
            self._load_extra_state(extra)
            self._load_torch_state(own)
        except BaseException:
            self._load_extra_state(before)
            raise
        self._restore_types(saved)
        self._forget_update()

    # Parameters.

    def _parameter_names(self) -> list[list[str]]:
        """The names of the parameters, group by group."""
        return [list(group["param_names"]) for group in self.param_groups]

    def _named_parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter, all groups together."""
        names = [name for own in self._parameter_names() for name in own]
        return dict(zip(names, (p for group in self.param_groups for p in group["params"]), strict=True))

    def _kept_as(self, parameter: nn.Parameter, key: str, value: Tensor) -> Kept | None:
        """How ``self.state[parameter][key]`` is kept, ``value`` being a saved one; None if it is not.

        A subclass says it of what has not the parameter's shape and type.
        """
        return Kept((), None) if key == "step" else Kept(tuple(parameter.shape), parameter.dtype)

    def _check_saved(self, saved: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse a state whose parameters, or what is kept of them, have other shapes.

        Args:
            saved: parameter name → what the state dict keeps of it.
            shapes: parameter name → its shape when it was saved; empty in states that do not tell.

        Raises:
            ValueError: it names the first that differs.
        """
        for name, p in self._named_parameters().items():
            if name in shapes:
                check_shape(f"parameter {name!r}", shapes[name], p.shape)
            for key, value in tensors_in(saved[name]):
                kept = self._kept_as(p, key, value)
                if kept is None:
                    what = f"the state_dict has {key} of parameter {name!r}, which this optimizer does not keep of it"
                    raise ValueError(f"{what}: was it made with other options?")
                if kept.shape is not None:
                    check_shape(f"{key} of parameter {name!r}", value.shape, kept.shape)

    def _load_torch_state(self, state_dict: dict[str, Any]) -> None:
        """Groups and ``self.state``."""
        super().load_state_dict(state_dict)

    def _restore_types(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """torch casts every loaded tensor to its parameter's type; what is kept in another goes on in that one."""
        for name, p in self._named_parameters().items():
            for key, value in tensors_in(saved[name]):
                kept, loaded = self._kept_as(p, key, value), self.state[p].get(key)
                if kept is not None and isinstance(loaded, Tensor) and loaded.dtype != (kept.dtype or loaded.dtype):
                    self.state[p][key] = value.to(loaded.device, kept.dtype)

    # Everything else.

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
