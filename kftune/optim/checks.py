"""Refusals of invalid hyperparameters, all in the same words: the argument, its value and what is allowed."""

from __future__ import annotations

import math


def check_range(
    name: str, value: float, *, low: float = 0.0, high: float = math.inf, low_in: bool = True, high_in: bool = False
) -> None:
    """Refuse a number outside an interval, or nan.

    Raises:
        ValueError: it names the argument, the value and the interval.
    """
    inside = (low <= value if low_in else low < value) and (value <= high if high_in else value < high)
    if not inside:
        interval = f"{'[' if low_in else '('}{low:g}, {high:g}{']' if high_in else ')'}"
        raise ValueError(f"{name} must be in {interval}, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not one of ``choices``.

    Raises:
        ValueError: it names the argument, the value and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_count(name: str, value: int, *, low: int = 1) -> None:
    """Refuse what is not a whole number of at least ``low``.

    Raises:
        ValueError: it names the argument, the value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")


def check_periods(statistics_every: int, inverses_every: int) -> None:
    """Refuse periods that are no counts, and inversions at updates that gather no statistics.

    Raises:
        ValueError: it names both.
    """
    check_count("statistics_every", statistics_every)
    check_count("inverses_every", inverses_every)
    if inverses_every % statistics_every:
        raise ValueError(
            f"inverses_every must be a multiple of statistics_every, got {inverses_every} and {statistics_every}"
        )
