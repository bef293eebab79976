"""What hyperparameters an optimizer takes, read off its constructor, and whether a value suits one."""

from __future__ import annotations

import inspect
import json
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from kftune._targets import is_target
from kftune.errors import suggestion
from kftune.results import BATCH_PARAMETERS
from kftune.study.config._flaws import show
from kftune.training.loop.hyperparameters import loop_parameters
from kftune.training.loop.schedules import MOMENTUM_GROWTH_STARTS, MOMENTUM_GROWTHS, SCHEDULES, TIED_SCHEDULES, UNITS

if TYPE_CHECKING:
    from kftune.optim import OptimizerEntry

__all__ = ["BATCH_SIZES", "Parameter", "equal_choice", "hyperparameters", "unusable_range"]

BATCH_SIZES = ("batch_size", "effective_batch_size")
"""Those of the training loop's hyperparameters that count examples; one of them must be set."""

_LARGEST_WHOLE = 2**53  # beyond, not every whole number is a floating-point one, as which samplers see it
_LEAST_WIDTH = 1e-9  # of a range as a part of its bounds: samplers compute within it

_SCHEDULED = {
    "damping_schedule": "damping",
    "final_damping": "damping",
    "weight_decay_schedule": "weight_decay",
    "final_weight_decay": "weight_decay",
    "momentum_growth": "momentum",
    "momentum_growth_rate": "momentum",
    "momentum_growth_start": "momentum",
}
"""Hyperparameters of schedules → the optimizer's own that they are of; the others are of its learning rate."""

_SCHEDULE_CHOICES = {
    "schedule": SCHEDULES,
    "schedule_by": UNITS,
    "damping_schedule": TIED_SCHEDULES,
    "weight_decay_schedule": TIED_SCHEDULES,
    "momentum_growth": MOMENTUM_GROWTHS,
    "momentum_growth_start": MOMENTUM_GROWTH_STARTS,
}

_NOT_TUNABLE = {"self", "model", "likelihood", "seed"}
_SIMPLE = {bool, int, float, str, type(None)}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One hyperparameter.

    Attributes:
        name: of the constructor's argument.
        default: its default; ``inspect.Parameter.empty`` if it has none.
        kinds: the simple types it may have; empty if it may be anything.
        choices: its only values, if its annotation is a ``Literal``.
        of_loop: whether it is the training loop's, not the optimizer's.
        as_value: makes the one value that is stored of what a study file may write besides (a list, a target); raises
            ValueError for what it may not.
    """

    name: str
    default: Any = inspect.Parameter.empty
    kinds: frozenset[type] = frozenset()
    choices: tuple[Any, ...] = ()
    of_loop: bool = False
    as_value: Callable[[Any], Any] | None = None

    @property
    def is_required(self) -> bool:
        """Whether the optimizer cannot be built without it."""
        return self.default is inspect.Parameter.empty and not self.of_loop

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole numbers."""
        return int in self.kinds and float not in self.kinds

    @property
    def is_numeric(self) -> bool:
        """Whether it may be a number at all."""
        return (not self.kinds and not self.choices) or bool(self.kinds & {int, float})

    def check(self, value: Any) -> Any:
        """The value as the optimizer should get it (``1`` for a real parameter becomes ``1.0``).

        Raises:
            ValueError: the value cannot be meant; the message says what can.
        """
        if self.as_value is not None and (stored := self.as_value(value)) is not None:
            return stored
        if isinstance(value, tuple | Mapping):
            raise ValueError(f"must be a single value (number, text, true, false or null), got {show(value)}")
        if any(value == choice and type(value) is type(choice) for choice in self.choices):
            return value
        if self.kinds or self.choices:
            number = _as_number(value) if self.is_numeric else None
            if number is not None and math.isfinite(number):
                if float in self.kinds:
                    return float(number)
                if number == int(number):
                    return int(number)
            elif isinstance(value, bool | str | None) and type(value) in self.kinds:
                return value
            raise ValueError(f"must be {self.allowed()}, got {show(value)}{self._near(value)}")
        return value

    def allowed(self) -> str:
        """What it may be, in words."""
        words = [show(choice) for choice in self.choices]
        if float in self.kinds:
            words.append("a number")
        elif int in self.kinds:
            words.append("a whole number")
        words += ["text"] if str in self.kinds else []
        words += ["true or false"] if bool in self.kinds else []
        words += ["null"] if type(None) in self.kinds else []
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"

    def _near(self, value: Any) -> str:
        names = [choice for choice in self.choices if isinstance(choice, str)]
        return suggestion(value, names).partition(" (available")[0] if isinstance(value, str) else ""


def hyperparameters(entry: OptimizerEntry) -> dict[str, Parameter]:
    """Everything a study file may set for this optimizer, in the constructor's order, the training loop's last."""
    # mypy means instances' __init__; this is the class's own.
    function: Any = entry.cls.__init__ if isinstance(entry.cls, type) else entry.cls  # type: ignore[misc]
    hints = _hints(function)
    found = {}
    for name, argument in inspect.signature(entry.cls).parameters.items():
        named = argument.kind in (argument.KEYWORD_ONLY, argument.POSITIONAL_OR_KEYWORD)
        if named and name not in _NOT_TUNABLE:
            kinds, choices = _kinds(hints.get(name))
            found[name] = Parameter(name=name, default=argument.default, kinds=kinds, choices=choices)
    own = set(found)
    for name in loop_parameters(entry):
        if name in BATCH_PARAMETERS:
            found[name] = Parameter(name=name, kinds=frozenset({int}), of_loop=True)
        elif (needed := _SCHEDULED.get(name)) is None or needed in own:
            found[name] = _schedule_parameter(name)
    return found


def equal_choice(choices: Sequence[Any]) -> tuple[int, str] | None:
    """A choice that is an earlier one to Python, and so to Optuna, which stores the first where the other was run."""
    for i, choice in enumerate(choices):
        for other in choices[:i]:
            if choice == other and repr(choice) != repr(other):
                return i, f"choices must differ: {show(other)} and {show(choice)} are equal numbers"
    return None


def unusable_range(low: float, high: float, *, whole: bool) -> tuple[str, str] | None:
    """The bound that floating-point numbers leave no room at, and why; None for a range that can be searched."""
    for key, value in (("low", low), ("high", high)):
        if whole and abs(value) > _LARGEST_WHOLE:
            return key, f"must be between -2^53 and 2^53, got {show(value)}"
        if 0 < abs(value) < sys.float_info.min:
            return key, f"must be 0 or at least {sys.float_info.min:.3g} in size, got {value!r}"
    if not math.isfinite(high - low):
        return "high", f"is too far from low ({show(low)}) to be searched, got {show(high)}"
    if not whole and low < high and high - low < _LEAST_WIDTH * max(abs(low), abs(high)):
        return "high", f"is too near to low for a range, {high!r} to {low!r}; fix one value instead"
    return None


def _schedule_parameter(name: str) -> Parameter:
    if name in _SCHEDULE_CHOICES:
        as_value = _target_value if name == "schedule" else None
        return Parameter(name=name, choices=_SCHEDULE_CHOICES[name], of_loop=True, as_value=as_value)
    if name == "milestones":
        return Parameter(name=name, kinds=frozenset({float, str}), of_loop=True, as_value=_list_value)
    return Parameter(name=name, kinds=frozenset({float}), of_loop=True)


def _target_value(value: Any) -> str | None:
    """The text in which a scheduler of torch is kept among a configuration's single values."""
    if isinstance(value, str) and is_target(value) and not value.startswith("{"):
        value = {"target": value}
    if isinstance(value, Mapping):
        return json.dumps({"target": value.get("target"), "args": value.get("args") or {}}, sort_keys=True)
    return value if isinstance(value, str) and value.startswith("{") else None


def _list_value(value: Any) -> str | None:
    """A list of numbers as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = (value,)
    if isinstance(value, list | tuple) and all(_as_number(item) is not None for item in value):
        return ", ".join(f"{_as_number(item):g}" for item in value)
    return None


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:
        # A plug-in may import its annotations' types for type checkers only; they serve to check values early.
        return {}


def _kinds(hint: Any) -> tuple[frozenset[type], tuple[Any, ...]]:
    """The simple types and the literal values in an annotation; nothing if it allows anything else."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds: set[type] = set()
    choices: list[Any] = []
    for member in members:
        if get_origin(member) is Literal:
            choices += get_args(member)
        elif member in _SIMPLE:
            kinds.add(member)
        else:
            return frozenset(), ()
    return frozenset(kinds), tuple(choices)


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None
