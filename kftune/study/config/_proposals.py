"""Configurations of a space to try a constructor with."""

from __future__ import annotations

import random
from typing import Any

__all__ = ["Corner", "Draw", "Middle"]


class Corner:
    """Answers a space's questions with one end of every range."""

    def __init__(self, *, choice: int, use_high: int) -> None:
        self._choice = choice
        self._use_high = use_high

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return high if self._use_high else low

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return high if self._use_high else low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[min(self._choice, len(choices) - 1)]


class Draw:
    """Answers with random values."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._rng.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._rng.randint(low, high)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._rng.choice(choices)


class Middle:
    """Answers with the middle of every range, and the first choice."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float((low * high) ** 0.5) if log else (low + high) / 2

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return (low + high) // 2

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[0]
