"""What differs between two nested configurations, one readable line per place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from kftune.storage._types import from_json, to_json

__all__ = ["differences"]

_ABSENT = object()


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines like ``budget.seconds: 1.0 → 2.0``, in the order of the keys of ``stored``, then of ``now``.

    Both are compared as they would be stored: a tuple equals a list, NaN equals NaN.
    """
    before, after = _leaves(from_json(to_json(stored))), _leaves(from_json(to_json(now)))
    return [
        f"{path}: {_shown(before.get(path, _ABSENT))} → {_shown(after.get(path, _ABSENT))}"
        for path in dict.fromkeys((*before, *after))
        if not _same(before.get(path, _ABSENT), after.get(path, _ABSENT))
    ]


def _leaves(plain: Any) -> dict[str, Any]:
    return dict(_walk(plain, ""))


def _walk(plain: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(plain, dict) and plain:
        for key, value in plain.items():
            yield from _walk(value, f"{path}.{key}" if path else str(key))
    elif isinstance(plain, list) and plain:
        for index, value in enumerate(plain):
            yield from _walk(value, f"{path}[{index}]")
    elif path:
        yield path, plain


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    return value if isinstance(value, str) and not _reads_as_json(value) else json.dumps(value, ensure_ascii=False)


def _reads_as_json(text: str) -> bool:
    """Whether a string needs its quotes to be told from a number or nothing."""
    try:
        json.loads(text or "null")
    except ValueError:
        return False
    return True
