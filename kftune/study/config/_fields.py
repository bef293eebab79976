"""Types of single values in a study file, and the strict model that all its parts are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict

from kftune._targets import check_target, is_target
from kftune.errors import suggestion
from kftune.study.config._flaws import show

__all__ = [
    "MOST_THREADS",
    "Devices",
    "Name",
    "Number",
    "Scalar",
    "Strict",
    "Target",
    "Values",
    "Whole",
    "check_name",
    "check_threads",
    "named",
    "whole_or_auto",
]

MOST_THREADS = 1024
"""Of a worker. Each is one of the operating system's, and begins where there are cores for it or not."""

_LONGEST_NAME = 100
_NAME = re.compile(r"[^\W_][\w.\- ]*(?<! )")


def _number(value: Any) -> Any:
    """Text that reads as a number is one; true and false are not."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"must be a number, got {show(value)}") from None
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {show(value)}")
    return value


def _whole(value: Any) -> Any:
    """As :func:`_number`; pydantic then refuses fractions."""
    try:
        return _number(value)
    except ValueError as error:
        raise ValueError(str(error).replace("a number", "a whole number", 1)) from None


def check_name(value: Any) -> Any:
    """Names become parts of file names and of study names, where a slash separates."""
    if isinstance(value, int | float):
        raise ValueError(f"must be text, got {show(value)} (put it in quotes)")
    if not isinstance(value, str):
        raise ValueError(f"must be text, got {show(value)}")
    if not _NAME.fullmatch(value) or len(value) > _LONGEST_NAME:
        raise ValueError(
            "must begin with a letter or digit and hold only letters, digits, spaces and . _ - "
            f"(at most {_LONGEST_NAME} characters), got {show(value)}"
        )
    return value


def _scalar(value: Any) -> Any:
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"must be a single value (number, text, true, false or null), got {show(value)}")
    return value


def whole_or_auto(value: Any) -> Any:
    """A whole number of at least 1, or ``auto``."""
    if value == "auto":
        return value
    number = value if isinstance(value, str) else _number(value)
    if not isinstance(number, int | float) or number < 1 or number != int(number):
        raise ValueError(f"must be a whole number of at least 1, or auto, got {show(value)}")
    return int(number)


def check_threads(value: Any) -> Any:
    """As :func:`whole_or_auto`, and no more than any machine has use for."""
    found = whole_or_auto(value)
    if found != "auto" and found > MOST_THREADS:
        raise ValueError(f"must be at most {MOST_THREADS}, got {show(value)}")
    return found


def _devices(value: Any) -> Any:
    """``auto``, or a list of ``cpu``, ``cuda`` (all of them) and ``cuda:<i>``; one slot per item."""
    if value == "auto":
        return value
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError(f"must be auto or a list of devices such as cpu or cuda:0, got {show(value)}")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            hint = suggestion(name, ["auto", "cpu", "cuda", "cuda:0"]) if isinstance(name, str) else ""
            raise ValueError(f"unknown device {show(name)}{hint}")
    return tuple(names)


def _values(value: Any) -> Any:
    """One value; several, for an argument that is a tuple; or a target with its arguments, for a schedule."""
    if isinstance(value, Mapping) and set(value) <= {"target", "args"}:
        return {"target": _target(value.get("target")), "args": _arguments(value.get("args"))}
    return tuple(_scalar(item) for item in value) if isinstance(value, list | tuple) and value else _scalar(value)


def _arguments(value: Any) -> Any:
    if value is not None and (not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value)):
        raise ValueError(f"args must be a mapping of names to values, got {show(value)}")
    return dict(value or {})


def _target(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"must be text such as package.module:Class, got {show(value)}")
    check_target(value)
    return value


def named(value: Any, kind: str) -> Any:
    """A bare name stands for ``{name: …}``, one with a colon for ``{target: …}``."""
    if isinstance(value, str):
        return {"target" if is_target(value) else "name": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"must be {kind} or a mapping with its name, got {show(value)}")
    return value


Number: TypeAlias = Annotated[float, BeforeValidator(_number)]
Whole: TypeAlias = Annotated[int, BeforeValidator(_whole)]
Name: TypeAlias = Annotated[str, BeforeValidator(check_name)]
Scalar: TypeAlias = Annotated[Any, BeforeValidator(_scalar)]
Values: TypeAlias = Annotated[Any, BeforeValidator(_values)]
Target: TypeAlias = Annotated[str, BeforeValidator(_target)]
Devices: TypeAlias = Annotated[Literal["auto"] | tuple[str, ...], BeforeValidator(_devices)]


class Strict(BaseModel):
    """Refuses keys it does not know; cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)
