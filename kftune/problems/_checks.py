"""Checks of problems' own arguments."""

from __future__ import annotations

from typing import Any

from kftune.errors import UsageError

__all__ = ["check_bool", "check_count"]


def check_bool(name: str, value: Any) -> bool:
    """``value`` if it is a bool.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, got {value!r}")
    return value


def check_count(name: str, value: Any) -> int:
    """``value`` if it is a whole number of at least 1.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value
