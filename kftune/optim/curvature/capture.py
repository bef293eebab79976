"""Forward hooks that show a layer's input and output to whoever records, and nothing at other times.

Full backward hooks are not used: they break under in-place activations. Whoever needs ∂L/∂s of a layer takes the
output's gradient edge, or puts a tensor hook on the output, both from inside the forward hook, that is before anything
can change the output in place. They run before all other forward hooks, which may put something else in its place.
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks,
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
)
from torch.utils.hooks import RemovableHandle

OnUse: TypeAlias = Callable[[str, Tensor, Tensor], None]
"""Called with a layer's name, its input and its output, once for every use of the module in a forward pass."""


class Capture:
    """Forward hooks on some modules, silent unless :meth:`recording`.

    The hooks hold only a weak reference here and go when this object does.

    In a model of ``torch.compile`` the layers are compiled once as if nobody looked, and once with a break of the graph
    at each module, for what looks must see real tensors.

    Args:
        modules: name → module.

    Attributes:
        is_recording: whether inside :meth:`recording`.
        report: :meth:`show` as the hooks call it then.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        self._on_use: OnUse | None = None
        self.is_recording = False
        self.report = _untraced_report()
        self._names = {module: name for name, module in modules.items()}
        self._by_all = False  # whether a hook of all modules reports, in the place of each module's own
        handles = [
            module.register_forward_hook(_Hook(self, name), prepend=True, with_kwargs=True)
            for name, module in modules.items()
        ]
        self._hook_ids = [(module, handle.id) for module, handle in zip(modules.values(), handles, strict=True)]
        weakref.finalize(self, _remove_all, handles).atexit = False

    def __reduce__(self) -> tuple[type[Capture], tuple[dict[str, nn.Module]]]:
        # A copy looks at the copied modules, whose copied hooks do nothing.
        return Capture, (self._modules,)

    @contextmanager
    def recording(self, on_use: OnUse) -> Iterator[None]:
        """Report uses of the modules inside the block, where they are in training mode and gradients are enabled.

        Only the forward pass belongs in the block: recomputation during a backward pass (gradient checkpointing) would
        count layers twice.
        """
        for module, hook_id in self._hook_ids:
            if not _sees_raw_output(module, hook_id):
                _put_first(module._forward_hooks, hook_id)
        self._on_use, self.is_recording = on_use, True
        of_all = self._watch_all() if _global_forward_hooks else None
        try:
            yield
        finally:
            self._on_use, self.is_recording, self._by_all = None, False, False
            if of_all is not None:
                of_all.remove()
                _global_forward_hooks_with_kwargs.pop(of_all.id, None)  # which torch forgets

    def _watch_all(self) -> RemovableHandle:
        """Hooks of all modules run before a module's own: to see what no hook has changed takes another one of them."""
        self._by_all = True
        of_all = register_module_forward_hook(self._of_any, with_kwargs=True)
        _put_first(_global_forward_hooks, of_all.id)
        return of_all

    def _of_any(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if module in self._names:
            self.report(self, self._names[module], module, _input(args, kwargs), output)

    @property
    def reports_itself(self) -> bool:
        """Whether the modules' own hooks report."""
        return self.is_recording and not self._by_all

    def show(self, name: str, module: nn.Module, layer_input: Tensor, layer_output: Tensor) -> None:
        """Tell whoever records of one use of a module."""
        if self._on_use is not None and module.training and torch.is_grad_enabled() and layer_output.requires_grad:
            self._on_use(name, layer_input, layer_output)


@functools.cache
def _untraced_report() -> Callable[[Capture, str, nn.Module, Any, Any], None]:
    """:meth:`Capture.show`, which dynamo does not look into: it would compile it anew for every update's tensors.

    Made on first use: it imports ``torch._dynamo``, which takes more than a second, as the first optimizer does too.
    """
    # torch does not annotate it
    untraced: Callable[..., None] = torch.compiler.disable(Capture.show)  # type: ignore[no-untyped-call]
    return untraced


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Linear layers and convolutions call it ``input``; nobody looks at that of other modules."""
    return args[0] if args else kwargs.get("input")


def _put_first(hooks: MutableMapping[int, Any], hook_id: int) -> None:
    """Have a hook run before all others."""
    assert isinstance(hooks, OrderedDict)  # as torch makes them, and says otherwise
    hooks.move_to_end(hook_id, last=False)


def _sees_raw_output(module: nn.Module, hook_id: int) -> bool:
    """Whether no hook that may change a module's output runs before this one of ours."""
    for other, hook in module._forward_hooks.items():
        if other == hook_id:
            return True
        if not isinstance(hook, _Hook):
            return False
    return True  # somebody took it away


def _remove_all(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


class _Hook:
    """A forward hook. A copy of it, as in a copied or unpickled model, does nothing."""

    def __init__(self, capture: Capture | None, name: str) -> None:
        self._capture = weakref.ref(capture) if capture is not None else None
        self._name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        capture = self._capture() if self._capture is not None else None
        if capture is not None and capture.reports_itself:
            capture.report(capture, self._name, module, _input(args, kwargs), output)

    def __reduce__(self) -> tuple[type[_Hook], tuple[None, str]]:
        return _Hook, (None, self._name)
