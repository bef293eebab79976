"""Forward hooks that show a layer's input and output to whoever records, and nothing at other times.

Full backward hooks are not used: they break under in-place activations. Whoever needs ∂L/∂s of a layer takes the
output's gradient edge, or puts a tensor hook on the output, both from inside the forward hook, that is before anything
can change the output in place.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

OnUse: TypeAlias = Callable[[str, Tensor, Tensor], None]
"""Called with a layer's name, its input and its output, once for every use of the module in a forward pass."""


class Capture:
    """Forward hooks on some modules, silent unless :meth:`recording`.

    The hooks hold only a weak reference here and go when this object does. Modules are not kept alive.

    Args:
        modules: name → module.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._on_use: OnUse | None = None
        handles = [module.register_forward_hook(_Hook(self, name)) for name, module in modules.items()]
        self._finalizer = weakref.finalize(self, _remove_all, handles)
        self._finalizer.atexit = False

    @contextmanager
    def recording(self, on_use: OnUse) -> Iterator[None]:
        """Report uses of the modules inside the block, where they are in training mode and gradients are enabled.

        Only the forward pass belongs in the block: recomputation during a backward pass (gradient checkpointing) would
        count layers twice.
        """
        self._on_use = on_use
        try:
            yield
        finally:
            self._on_use = None

    def remove(self) -> None:
        """Take the hooks off."""
        self._finalizer()

    def report(self, name: str, module: nn.Module, layer_input: Tensor, layer_output: Tensor) -> None:
        """Called by the hooks."""
        if self._on_use is not None and module.training and torch.is_grad_enabled() and layer_output.requires_grad:
            self._on_use(name, layer_input, layer_output)


def _remove_all(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


class _Hook:
    """A forward hook. A copy of it, as in a copied or unpickled model, does nothing."""

    def __init__(self, capture: Capture | None, name: str) -> None:
        self._capture = weakref.ref(capture) if capture is not None else None
        self._name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        capture = self._capture() if self._capture is not None else None
        if capture is not None:
            capture.report(self._name, module, args[0], output)

    def __reduce__(self) -> tuple[type[_Hook], tuple[None, str]]:
        return _Hook, (None, self._name)
