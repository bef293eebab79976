"""Search spaces: what an optimizer's hyperparameters may be, and how a sampler should see them.

A :class:`Space` is an ordered set of dimensions. Each dimension is what the *sampler* varies; from the sampled
values :meth:`Space.resolve` makes what the *optimizer* is built with. The two differ where a change of variable
conditions the search better:

* ``relative_to="lr"``: the sampler varies ``damping/lr`` and the optimizer gets ``damping = (damping/lr)·lr``
  (a higher learning rate needs more damping, so the ratio's good range moves less than the damping's own);
* ``complement=True``: the sampler varies ``1 - factor_decay`` on a log scale, the optimizer gets ``factor_decay``.

A dimension with ``when=Condition("momentum_schedule", ("linear", "exponential"))`` exists only in configurations
where the named dimension has one of these values.

Nothing here imports a sampler: :meth:`Space.suggest` asks any object with Optuna's ``suggest_*`` methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeAlias, TypeGuard

__all__ = ["Categorical", "Condition", "Dimension", "Float", "Int", "Space", "Suggester", "Value", "from_dict"]

Value: TypeAlias = float | int | str | bool | None


class Suggester(Protocol):
    """What :meth:`Space.suggest` needs; ``optuna.Trial`` has it."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A real number in [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number in {low, …, high}."""
        ...

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """One of ``choices``."""
        ...


@dataclass(frozen=True)
class Condition:
    """Active only where the dimension (or fixed value) ``name`` is one of ``values``."""

    name: str
    values: tuple[Value, ...]

    def holds(self, params: Mapping[str, Value]) -> bool:
        """Whether the condition holds in ``params`` (absent counts as not holding)."""
        return self.name in params and params[self.name] in self.values


@dataclass(frozen=True, kw_only=True)
class Float:
    """A real dimension in [low, high].

    Args:
        low: smallest value (of the ratio if ``relative_to`` is given).
        high: largest value.
        log: search the logarithm; with ``complement``, the logarithm of ``1 - value``.
        relative_to: name of an earlier dimension or fixed value; the sampler varies ``value / that``.
        complement: the sampler varies ``1 - value``.
        when: see :class:`Condition`.

    Raises:
        ValueError: if ``low > high``, a bound is not finite, or a log scale includes a value ≤ 0.
    """

    kind: ClassVar[str] = "float"
    low: float
    high: float
    log: bool = False
    relative_to: str | None = None
    complement: bool = False
    when: Condition | None = None

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if self.relative_to is not None and self.complement:
            raise ValueError("a dimension cannot be both relative_to and complement")
        if self.log and self._sampled_bounds()[0] <= 0:
            what = "1 - high" if self.complement else "low"
            raise ValueError(f"a log scale needs {what} > 0, got {self._sampled_bounds()[0]!r}")

    def _sampled_bounds(self) -> tuple[float, float]:
        # Rounded to 12 digits: 1 - 0.999 should read 0.001 in tables and not mix studies by a last bit.
        return (round(1 - self.high, 12), round(1 - self.low, 12)) if self.complement else (self.low, self.high)

    def sampled_name(self, name: str) -> str:
        """The name under which the sampler knows this dimension."""
        if self.relative_to is not None:
            return f"{name}/{self.relative_to}"
        return f"1-{name}" if self.complement else name

    def suggest(self, name: str, suggester: Suggester) -> float:
        """Ask for the sampled value (before :meth:`resolve`)."""
        low, high = self._sampled_bounds()
        return suggester.suggest_float(self.sampled_name(name), low, high, log=self.log)

    def resolve(self, sampled: Value, params: Mapping[str, Value]) -> Value:
        """The optimizer's value from the sampled one; ``params`` holds what is resolved already."""
        value = float(sampled)  # type: ignore[arg-type]  # Value is wider than what a Float samples
        if self.relative_to is not None:
            return value * float(params[self.relative_to])  # type: ignore[arg-type]  # checked by Space
        return 1 - value if self.complement else value


@dataclass(frozen=True, kw_only=True)
class Int:
    """A whole-number dimension in {low, …, high}; ``log`` searches its logarithm.

    Raises:
        ValueError: if ``low > high``, or a log scale has ``low < 1``.
    """

    kind: ClassVar[str] = "int"
    low: int
    high: int
    log: bool = False
    when: Condition | None = None

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)
        if self.log and self.low < 1:
            raise ValueError(f"a log scale needs low > 0, got {self.low!r}")

    def sampled_name(self, name: str) -> str:
        """The name under which the sampler knows this dimension."""
        return name

    def suggest(self, name: str, suggester: Suggester) -> int:
        """Ask for the value."""
        return suggester.suggest_int(name, self.low, self.high, log=self.log)

    def resolve(self, sampled: Value, params: Mapping[str, Value]) -> Value:
        """The value itself."""
        return int(sampled)  # type: ignore[arg-type]  # Value is wider than what an Int samples


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """One of ``choices``.

    Raises:
        ValueError: if there is no choice, or one stands twice.
    """

    kind: ClassVar[str] = "categorical"
    choices: tuple[Value, ...]
    when: Condition | None = None

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError("choices must not be empty")
        if len({repr(choice) for choice in self.choices}) != len(self.choices):
            raise ValueError(f"choices must differ from each other, got {list(self.choices)!r}")

    def sampled_name(self, name: str) -> str:
        """The name under which the sampler knows this dimension."""
        return name

    def suggest(self, name: str, suggester: Suggester) -> Value:
        """Ask for the choice."""
        choice: Value = suggester.suggest_categorical(name, self.choices)
        return choice

    def resolve(self, sampled: Value, params: Mapping[str, Value]) -> Value:
        """The choice itself."""
        return sampled


Dimension: TypeAlias = Float | Int | Categorical


@dataclass(frozen=True)
class Space:
    """An ordered search space: dimensions to vary and values that are fixed.

    Args:
        dimensions: name of the hyperparameter → dimension, in the order the sampler is asked.
        fixed: hyperparameters taken out of the search, with their values.

    Raises:
        ValueError: if a name is both varied and fixed, or a ``relative_to``/``when`` names nothing that comes before.
    """

    dimensions: Mapping[str, Dimension] = field(default_factory=dict)
    fixed: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = set(self.fixed)
        for name, dimension in self.dimensions.items():
            if name in self.fixed:
                raise ValueError(f"{name!r} is both a dimension and fixed")
            needed = [dimension.when.name] if dimension.when else []
            if isinstance(dimension, Float) and dimension.relative_to is not None:
                needed.append(dimension.relative_to)
            for other in needed:
                if other not in known:
                    raise ValueError(f"{name!r} depends on {other!r}, which is neither fixed nor an earlier dimension")
            known.add(name)

    def names(self) -> tuple[str, ...]:
        """All hyperparameters this space sets, varied ones first."""
        return (*self.dimensions, *self.fixed)

    def override(self, dimensions: Mapping[str, Dimension], fixed: Mapping[str, Value]) -> Space:
        """This space with some dimensions replaced, added or fixed (``fixed`` wins over ``dimensions``)."""
        merged_fixed = {name: value for name, value in self.fixed.items() if name not in dimensions} | dict(fixed)
        merged: dict[str, Dimension] = dict(self.dimensions) | dict(dimensions)
        return Space({name: d for name, d in merged.items() if name not in merged_fixed}, merged_fixed)

    def suggest(self, suggester: Suggester) -> dict[str, Value]:
        """Ask for every active dimension in order; returns resolved hyperparameters, fixed ones included."""
        params = dict(self.fixed)
        for name, dimension in self.active(params):
            params[name] = dimension.resolve(dimension.suggest(name, suggester), params)
        return params

    def resolve(self, sampled: Mapping[str, Value]) -> dict[str, Value]:
        """Hyperparameters from the sampler's stored values (keyed by sampled name)."""
        params = dict(self.fixed)
        for name, dimension in self.active(params):
            params[name] = dimension.resolve(sampled[dimension.sampled_name(name)], params)
        return params

    def largest(self) -> dict[str, float]:
        """The largest value of every numeric dimension or fixed value that is not relative to another."""
        found = {name: value for name, value in self.fixed.items() if _is_number(value)}
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, Categorical):
                numbers = [choice for choice in dimension.choices if _is_number(choice)]
                found |= {name: max(numbers)} if numbers else {}
            elif not (isinstance(dimension, Float) and dimension.relative_to):
                found[name] = dimension.high
        return found

    def active(self, params: Mapping[str, Value]) -> Iterator[tuple[str, Dimension]]:
        """Dimensions in order whose condition holds in ``params``, which the caller fills while iterating."""
        for name, dimension in self.dimensions.items():
            if dimension.when is None or dimension.when.holds(params):
                yield name, dimension

    def to_dict(self) -> dict[str, Any]:
        """Plain data for storage: ``{"dimensions": {name: {...}}, "fixed": {...}}``."""
        return {
            "dimensions": {name: dimension_to_dict(d) for name, d in self.dimensions.items()},
            "fixed": dict(self.fixed),
        }


def dimension_to_dict(dimension: Dimension) -> dict[str, Any]:
    """Plain data of one dimension: its kind and every setting that is not the default."""
    plain: dict[str, Any] = {"kind": dimension.kind}
    if isinstance(dimension, Categorical):
        plain["choices"] = list(dimension.choices)
    else:
        plain |= {"low": dimension.low, "high": dimension.high, "log": dimension.log}
    if isinstance(dimension, Float):
        plain |= {"relative_to": dimension.relative_to} if dimension.relative_to else {}
        plain |= {"complement": True} if dimension.complement else {}
    if dimension.when is not None:
        plain["when"] = {"name": dimension.when.name, "values": list(dimension.when.values)}
    return plain


def dimension_from_dict(plain: Mapping[str, Any]) -> Dimension:
    """Inverse of :func:`dimension_to_dict`.

    Raises:
        ValueError: as the dimension's own constructor.
    """
    settings = {key: value for key, value in plain.items() if key != "kind"}
    when = settings.pop("when", None)
    if when is not None:
        settings["when"] = Condition(when["name"], tuple(when["values"]))
    if plain["kind"] == "categorical":
        return Categorical(**(settings | {"choices": tuple(settings["choices"])}))
    return Float(**settings) if plain["kind"] == "float" else Int(**settings)


def from_dict(plain: Mapping[str, Any]) -> Space:
    """Inverse of :meth:`Space.to_dict`."""
    dimensions = {name: dimension_from_dict(d) for name, d in plain["dimensions"].items()}
    return Space(dimensions, dict(plain["fixed"]))


def with_condition(dimension: Dimension, when: Condition | None) -> Dimension:
    """The same dimension under another condition."""
    return replace(dimension, when=when)


def _is_number(value: Value) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_bounds(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"low and high must be finite, got {low!r} and {high!r}")
    if low > high:
        raise ValueError(f"low must not be above high, got low={low!r} and high={high!r}")
