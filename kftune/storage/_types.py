"""Column types that lose nothing: floats with NaN and infinities, strict JSON, times with zone, any text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, Double, Text
from sqlalchemy.types import TypeDecorator

from kftune.wording import plain_text

_FLOAT_KEY = "$float"
_NAN = "NaN"


def to_json(value: Any) -> str:
    """Strict JSON; a float that JSON lacks becomes ``{"$float": "nan"}`` (or ``"inf"``, ``"-inf"``).

    Raises:
        TypeError: if ``value`` holds anything but plain data.
    """
    return json.dumps(_spelled_out(value), allow_nan=False)


def from_json(text: str) -> Any:
    """Inverse of :func:`to_json` (tuples come back as lists)."""
    # Without a hook, for nearly everything, all of it is read in C.
    return (_DECODER if _FLOAT_KEY in text else _PLAIN_DECODER).decode(text)


def _spelled_out(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT_KEY: str(float(value))}
    if isinstance(value, Mapping):
        return {key: _spelled_out(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled_out(item) for item in value]
    return value


def _float_or_dict(plain: dict[str, Any]) -> Any:
    return float(plain[_FLOAT_KEY]) if plain.keys() == {_FLOAT_KEY} else plain


_PLAIN_DECODER = json.JSONDecoder()
_DECODER = json.JSONDecoder(object_hook=_float_or_dict)


class Json(TypeDecorator[Any]):
    """Plain data as text, the same in every database (PostgreSQL's JSON refuses NaN)."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """See :func:`to_json`; None is the database's NULL."""
        return None if value is None else to_json(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str | None], Any]:
        """See :func:`from_json`."""
        return _json_or_none


class Real(TypeDecorator[float]):
    """A float, NaN included. SQLite turns NaN into NULL, so there it is stored as the text ``NaN``."""

    impl = Double
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[float | None], Any]:
        """To a float or, for SQLite, perhaps text; Double's own processor would make a float of that again."""
        return _float_or_nan if dialect.name == "sqlite" else _float_or_none

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], float | None]:
        """Back to a float. A function by itself: a database of curves holds millions of them."""
        return _float_or_none


def _json_or_none(text: str | None) -> Any:
    return None if text is None else from_json(text)


def _float_or_none(value: float | None) -> float | None:
    return None if value is None else float(value)


def _float_or_nan(value: float | None) -> Any:
    return _NAN if value is not None and math.isnan(value) else _float_or_none(value)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time; stored as UTC."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC.

        Raises:
            ValueError: for a time without zone, which would be ambiguous.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a time to be stored needs a zone, got {value!r}")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """As an aware time in UTC."""
        return None if value is None else value.replace(tzinfo=UTC)


class AnyText(TypeDecorator[str]):
    """Text of any origin, e.g. a traceback. NUL and lone surrogates, which no database takes, become escapes."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Escape what cannot be stored."""
        return None if value is None else plain_text(value)
