"""Numbers, times and names as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

__all__ = [
    "clock_time",
    "cut",
    "duration",
    "loss",
    "number",
    "objective_title",
    "outcome_title",
    "percent",
    "plain_text",
    "reads_up_to",
    "time_unit",
    "trials_made",
    "without_password",
    "without_passwords",
]

_GAP = 50  # characters for saying how many are left out
_OBJECTIVES = {"test_loss": "test loss", "train_loss": "train loss", "test_error": "test error"}
_LOSS_DIGITS = 4
_LOGIN = r"((?:\w[\w+.-]*(?::/{0,2}|//))[^\s:/@'\"]*|^[^\s:/@'\"]+(?!:/))"  # up to the colon before the password
_SECRET_KEY = re.compile(r"(?i)([?&](?:password|passwd|pwd|sslpassword)=)[^&#\s'\"]*")
_OUTCOMES = {"out_of_memory": "out of memory", "timed_out": "timed out"}


def number(value: Any, digits: int = 4) -> str:
    """A float to some significant digits (``1.2e-5``, not ``1.2e-05``), anything else as it is.

    Whole ones below a million keep all their digits: an edge of a box at ``2000.0`` is 2000, not 2e3.
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value.is_integer() and abs(value) < 1e6:
        return str(int(value))
    mantissa, exponent_sign, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent_sign else mantissa


def plain_text(text: str) -> str:
    """Text of any origin as every file, terminal and database takes it: NUL and lone surrogates become escapes."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def cut(text: str, most: int) -> str:
    """The beginning and end of a text of more than ``most`` (100 or more) characters; between them how much is gone."""
    if len(text) <= most:
        return text
    kept = most - _GAP
    head = kept // 3  # of a traceback the end says what happened
    return f"{text[:head]} […{len(text) - kept} characters left out…] {text[head - kept :]}"


def loss(value: float) -> str:
    """A loss to four significant digits, final zeros kept, so that those below each other compare: ``0.02370``."""
    if not 1e-4 <= abs(value) < 1e4:
        return number(value)
    return f"{value:#.{_LOSS_DIGITS}g}".removesuffix(".")


def reads_up_to(value: float) -> float:
    """About the largest number that reads as ``value`` does in :func:`loss`; never below it."""
    if value == 0 or not math.isfinite(value):
        return value
    shown = float(f"{value:.{_LOSS_DIGITS - 1}e}")
    # Above a negative power of ten, numbers are shorter by a digit.
    exponent = int(f"{shown if shown > 0 else shown * (1 - 1e-9):.15e}".partition("e")[2])
    half = 0.5 * 10.0 ** (exponent - _LOSS_DIGITS + 1)
    return max(value, shown + half * (1 - 1e-6))


def trials_made(made: Iterable[tuple[int, int]]) -> str:
    """Of studies with (finished, asked for) trials: ``12 of 24``, or ``24 of 24 and 2 more`` if fewer are asked for."""
    pairs = list(made)
    more = sum(max(0, n - wanted) for n, wanted in pairs)
    text = f"{sum(min(n, wanted) for n, wanted in pairs)} of {sum(wanted for _, wanted in pairs)}"
    return f"{text} and {more} more" if more else text


def percent(share: float) -> str:
    """A share of 1 in percent: ``93 %``, ``0.9 %``, ``< 0.1 %``."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    # From 9.95 % on one decimal would read 10.0 %.
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """``0.35 s``, ``48 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if seconds < 59.95:  # what would be shown as 60.0 is a minute
        return f"{number(float(seconds), 2 if seconds < 10 else 3)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds of one unit in which times up to ``seconds`` read well on an axis, and its name."""
    if seconds < 300:
        return 1.0, "s"
    return (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")


def clock_time(time: datetime) -> str:
    """To the minute, UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def without_password(url: str) -> str:
    """A database's URL with ``***`` for its password, also where it is written wrong (``@``, ``/`` or ``#`` in it)."""
    return _SECRET_KEY.sub(r"\1***", re.sub(rf"{_LOGIN}:.+@", r"\1:***@", url, count=1, flags=re.DOTALL))


def without_passwords(text: str) -> str:
    """The same for every URL in a text."""
    return _SECRET_KEY.sub(r"\1***", re.sub(rf"{_LOGIN}:[^\s:]\S*@", r"\1:***@", text))


def objective_title(objective: str) -> str:
    """What is minimised, in words."""
    return _OBJECTIVES.get(objective, objective)


def outcome_title(outcome: str) -> str:
    """How a run ended, in words."""
    return _OUTCOMES.get(outcome, outcome)
