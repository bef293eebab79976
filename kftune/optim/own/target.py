"""Anyone's optimizer as an entry: a class of torch's kind, one with kftune's interface, or an entry itself."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from kftune._targets import target_name
from kftune.errors import UsageError
from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import ModelOptimizer
from kftune.optim.own.torch_optimizer import TorchOptimizer, check_step
from kftune.space import Space

_KINDS = (
    "a torch.optim.Optimizer class, a kftune.optim.ModelOptimizer class, a kftune.optim.OptimizerEntry, "
    "or a function of (params, …) or (model, …) that returns an optimizer"
)


@dataclass(frozen=True, kw_only=True)
class TargetEntry(OptimizerEntry):
    """An optimizer that no registry knows, made from its class or function. It has no search space of its own.

    Attributes:
        target: ``package.module:attribute``.
        joined: argument that is a tuple (``betas``) → the hyperparameters it is made of (``beta1``, ``beta2``).
        accepts_any: whether it takes hyperparameters that its signature does not name.
    """

    target: str
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    accepts_any: bool = False


@dataclass(frozen=True, kw_only=True)
class _Signature:
    """What a class or function takes.

    Attributes:
        first: name of its first argument.
        arguments: the others that have names.
        hints: their annotations, as far as they can be evaluated.
        is_open: whether it takes others too.
    """

    first: str
    arguments: Mapping[str, inspect.Parameter]
    hints: Mapping[str, Any]
    is_open: bool


def optimizer_from(target: str, found: object) -> OptimizerEntry:
    """The entry that an object of anyone's stands for.

    A class or function whose first argument is ``model`` is called as ``found(model, **hyperparameters)``, and is
    given ``likelihood`` and ``seed`` too if it takes them; any other is called as
    ``found(model.parameters(), **hyperparameters)``. Plain torch optimizers are wrapped in :class:`TorchOptimizer`.
    Tuples of numbers are set one by one: ``betas`` as ``beta1`` and ``beta2``.

    Args:
        target: where ``found`` is, for messages.
        found: an entry, a class or a function.

    Raises:
        UsageError: it is neither, or an optimizer that cannot be stepped once per update.
    """
    if isinstance(found, OptimizerEntry):
        return found
    if inspect.isclass(found):
        takes_model = _check_class(target, found)
        signature = _class_signature(found)
    elif inspect.isroutine(found):
        signature = _function_signature(found)
        if signature.first not in ("model", "params"):
            raise UsageError(f"{target!r} is no function of params or model; it must be {_KINDS}")
        takes_model = signature.first == "model"
    else:
        raise UsageError(f"{target!r} is {_article(type(found).__name__)}; it must be {_KINDS}")
    make, joined = _maker(target, found, signature, takes_model=takes_model or signature.first == "model")
    return TargetEntry(
        name=target_name(target),
        cls=make,
        summary=(inspect.getdoc(found) or "").partition("\n")[0],
        paper="",
        space=Space(),
        second_order=False,
        target=target,
        joined=joined,
        accepts_any=signature.is_open,
    )


def _check_class(target: str, cls: type) -> bool:
    """Whether it has kftune's interface; otherwise it is a plain torch optimizer.

    Raises:
        UsageError: it is neither, or lacks a method, or cannot be stepped once per update.
    """
    if issubclass(cls, ModelOptimizer):
        missing = [name for name in ("_update", "coverage") if getattr(cls, name) is getattr(ModelOptimizer, name)]
        if missing:
            raise UsageError(f"{target!r} does not implement {' and '.join(missing)} of kftune.optim.ModelOptimizer")
        return True
    if not issubclass(cls, torch.optim.Optimizer) or cls is torch.optim.Optimizer:
        raise UsageError(f"{target!r} is no optimizer; it must be {_KINDS}")
    try:
        check_step(cls)
    except ValueError as error:
        raise UsageError(f"{target!r} cannot be used: {error}") from None
    return False


def _maker(
    target: str, found: Callable[..., Any], signature: _Signature, *, takes_model: bool
) -> tuple[Callable[..., ModelOptimizer], dict[str, tuple[str, ...]]]:
    """``found`` with the constructor of kftune's optimizers, and which of its arguments are made of several."""
    joined = {name: _parts(name, a.default) for name, a in signature.arguments.items() if _is_tuple(name, a)}
    joined = {name: parts for name, parts in joined.items() if not set(parts) & set(signature.arguments)}
    told = [n for n in ("likelihood", "seed") if takes_model and (signature.is_open or n in signature.arguments)]

    def make(
        model: nn.Module, *, likelihood: Likelihood | None = None, seed: int = 0, **hyperparameters: Any
    ) -> ModelOptimizer:
        settings = _joined(hyperparameters, joined, signature.arguments)
        settings |= {n: value for n, value in (("likelihood", likelihood), ("seed", seed)) if n in told}
        made = found(model if takes_model else model.parameters(), **settings)
        if isinstance(made, ModelOptimizer):
            return made
        if isinstance(made, torch.optim.Optimizer):
            return TorchOptimizer(model, made)
        raise ValueError(f"{target} returned {_article(type(made).__name__)}, not an optimizer")

    make.__name__ = getattr(found, "__name__", target)
    make.__doc__ = found.__doc__
    shown = _shown_arguments(signature, joined)
    make.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]  # inspect.signature() looks for it
    make.__annotations__ = {a.name: a.annotation for a in shown if a.annotation is not a.empty}
    return make, joined


def _shown_arguments(signature: _Signature, joined: Mapping[str, tuple[str, ...]]) -> list[inspect.Parameter]:
    """``model``, then the hyperparameters by keyword, tuples taken apart."""
    shown = [inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name, argument in signature.arguments.items():
        hint = signature.hints.get(name, argument.empty)
        parts = [(name, argument.default, hint)]
        if name in joined:
            real = any(isinstance(value, float) for value in argument.default)
            hint = float if real else argument.empty
            parts = [(part, value, hint) for part, value in zip(joined[name], argument.default, strict=True)]
        for part, default, annotation in parts:
            shown.append(
                inspect.Parameter(part, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )
    return shown


def _is_tuple(name: str, argument: inspect.Parameter) -> bool:
    """Whether it is several numbers under one name in the plural."""
    default = argument.default
    return (
        name.endswith("s")
        and isinstance(default, tuple | list)
        and len(default) > 0
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in default)
    )


def _parts(name: str, default: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f"{name.removesuffix('s')}{i}" for i in range(1, len(default) + 1))


def _joined(
    hyperparameters: Mapping[str, Any],
    joined: Mapping[str, tuple[str, ...]],
    arguments: Mapping[str, inspect.Parameter],
) -> dict[str, Any]:
    """``beta1`` and ``beta2`` as ``betas``; what is not given keeps its default."""
    settings = dict(hyperparameters)
    for name, parts in joined.items():
        if any(part in settings for part in parts):
            defaults = zip(parts, arguments[name].default, strict=True)
            settings[name] = tuple(settings.pop(part, default) for part, default in defaults)
    return settings


def _function_signature(function: Callable[..., Any]) -> _Signature:
    first, named, is_open = _taken([*inspect.signature(function).parameters.values()])
    return _Signature(first=first, arguments=named, hints=_hints(function), is_open=is_open)


def _class_signature(cls: type) -> _Signature:
    """What the constructor takes; what it passes on as ``**kwargs`` is what its base's takes."""
    first = ""
    arguments: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    is_open = True
    for base in cls.__mro__:
        if not is_open or base in (torch.optim.Optimizer, ModelOptimizer):
            break
        if "__init__" in vars(base):
            constructor = vars(base)["__init__"]
            own_first, named, is_open = _taken([*inspect.signature(constructor).parameters.values()][1:])
            first = first or own_first
            arguments = named | arguments
            hints = _hints(constructor) | hints
    return _Signature(first=first, arguments=arguments, hints=hints, is_open=is_open)


def _taken(arguments: list[inspect.Parameter]) -> tuple[str, dict[str, inspect.Parameter], bool]:
    """The first argument's name, those after it that can be given by name, and whether there may be others."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    first = arguments[0].name if arguments and arguments[0].kind in kinds else ""
    named = {a.name: a for a in arguments[1:] if a.kind in kinds}
    return first, named, any(a.kind is a.VAR_KEYWORD for a in arguments)


def _hints(function: Any) -> dict[str, Any]:
    """Annotations; a number that may be a tensor too is a number in a study file."""
    try:
        hints = get_type_hints(function)
    except NameError:
        return {}  # imported for type checkers only; they serve to check values early
    return {name: _without_tensor(hint) for name, hint in hints.items()}


def _without_tensor(hint: Any) -> Any:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    rest = [member for member in get_args(hint) if member is not Tensor]
    return reduce(or_, rest) if rest else hint


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"
