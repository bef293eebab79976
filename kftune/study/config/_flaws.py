"""What is wrong with a study file, each flaw with the path of its key, and how it is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from pydantic import BaseModel

from kftune.errors import ConfigError, suggestion
from kftune.wording import without_password

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

__all__ = ["Flaws", "Location", "show", "shown_path", "unknown"]

Location: TypeAlias = tuple[str | int, ...]
"""Path of a key: ``("optimizers", 1, "space", "damping", "low")``."""

_LONGEST_SHOWN = 60


class Flaws:
    """Collects flaws so that one reading of a study file shows all of them."""

    def __init__(self) -> None:
        self._flaws: list[tuple[Location, str]] = []

    def __len__(self) -> int:
        return len(self._flaws)

    def add(self, location: Location, message: str) -> None:
        """Something is wrong at ``location``."""
        self._flaws.append((location, message))

    def add_all(self, error: ValidationError, model: type[BaseModel]) -> None:
        """Everything pydantic found wrong with data meant for ``model``."""
        found = error.errors(include_url=False)
        for details in found:
            loc = details["loc"]
            # A list whose items are all flawed counts as empty.
            has_items = any(other["loc"][: len(loc)] == loc for other in found if other["loc"] != loc)
            if details["type"] != "too_short" or not has_items:
                self.add(loc, _message(details, model))

    def raise_if_any(self, source_of: Callable[[Location], str | None] = lambda location: None) -> None:
        """Raise what was collected, if anything was.

        Args:
            source_of: name of the file (or option) that a location comes from.

        Raises:
            ConfigError: the first flaw; the others follow on lines of their own.
        """
        if not self._flaws:
            return
        # An optimizer's flaw is found once for every problem.
        flaws = dict.fromkeys(self._flaws)
        errors = [ConfigError(text, source=source_of(path), path=shown_path(path)) for path, text in flaws]
        message = "\n".join([errors[0].message, *(str(error) for error in errors[1:])])
        raise ConfigError(message, source=errors[0].source, path=errors[0].path)


def shown_path(location: Location) -> str:
    """``optimizers[1].space.damping.low``."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".")


def show(value: Any) -> str:
    """A value as one would write it in the study file, cut where it is long."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        text = repr(without_password(value))
    elif value is None or isinstance(value, bool):
        text = json.dumps(value)
    elif isinstance(value, float):
        text = f"{value:.12g}"
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def unknown(what: str, name: str, available: Iterable[str]) -> str:
    """``unknown key 'trails'; did you mean 'trials'? (available: …)``."""
    return f"unknown {what} {name!r}{suggestion(name, available)}"


_PLAIN = {"missing": "is missing", "too_short": "must not be empty"}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_KINDS = {
    "bool": "true or false",
    "dict": "a mapping (key: value)",
    "finite": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "a mapping (key: value)",
    "string": "text",
    "tuple": "a list",
}


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    kind, got, context = details["type"], details["input"], details.get("ctx", {})
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind == "extra_forbidden":
        *parents, key = details["loc"]
        return unknown("key", str(key), _keys_at(tuple(parents), model))
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return _not_one_of(got, details["loc"], model)
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {context[key]:g}, got {show(got)}"
    allowed = _KINDS.get(kind.partition("_")[0])
    return f"must be {allowed}, got {show(got)}" if allowed else f"{details['msg']}, got {show(got)}"


def _not_one_of(got: Any, location: Location, model: type[BaseModel]) -> str:
    choices = [str(choice) for choice in get_args(_annotation_at(location, model))]
    if not isinstance(got, str):
        return f"must be one of {', '.join(choices)}, got {show(got)}"
    return unknown(str(location[-1]), got, choices)


def _keys_at(location: Location, model: type[BaseModel]) -> list[str]:
    """The keys allowed in the mapping at ``location``."""
    return list(_fields(_annotation_at(location, model)))


def _annotation_at(location: Location, model: type[BaseModel]) -> Any:
    """The declared type at ``location``; walks models, ``tuple[X, ...]``, ``dict[str, X]`` and ``X | None``."""
    annotation: Any = model
    for part in location:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            annotation = _fields(annotation)[str(part)]
        else:
            annotation = get_args(annotation)[0 if isinstance(part, int) else -1]
        inner = get_args(annotation)
        if type(None) in inner:
            annotation = next(arg for arg in inner if arg is not type(None))
    return annotation


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Key in the file → declared type."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}
