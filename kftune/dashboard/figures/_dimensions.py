"""A hyperparameter as an axis: the box it was searched in, or, where that is not stored, the range that was tried."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kftune.analysis.stored.results import StudyResults
from kftune.analysis.tuning.box import searched_edges
from kftune.dashboard.figures._arrays import Floats, floats
from kftune.dashboard.figures.style import in_figure
from kftune.wording import number

__all__ = ["Scale", "scales"]

_MARGIN = 0.04


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One searched dimension.

    Attributes:
        name: as sampled, e.g. ``"damping/lr"``.
        hyperparameter: its name in the study file.
        low: lower edge; 0 for choices.
        high: upper edge; the last choice's place.
        log: whether its logarithm is drawn.
        choices: of a categorical dimension, as text; empty for numbers.
        is_boxed: whether the edges are those of the search box.
    """

    name: str
    hyperparameter: str
    low: float
    high: float
    log: bool
    choices: tuple[str, ...] = ()
    is_boxed: bool = True

    @property
    def low_text(self) -> str:
        """The lower edge."""
        return self.choices[0] if self.choices else number(float(self.low), 3)

    @property
    def high_text(self) -> str:
        """The upper edge."""
        return self.choices[-1] if self.choices else number(float(self.high), 3)

    def value(self, stored: Any) -> float:
        """A stored value as a number."""
        return float(self.choices.index(_text(stored))) if self.choices else float(stored)

    def drawn(self, stored: Iterable[Any]) -> Floats:
        """Stored values for a trace."""
        return floats(self.value(value) for value in stored)

    def place(self, stored: Any) -> float:
        """0 at the lower edge, 1 at the upper."""
        value, low, high = self.value(stored), self.low, self.high
        if self.log:
            value, low, high = (math.log(v) if v > 0 else math.nan for v in (value, low, high))
        return 0.5 if high == low else (value - low) / (high - low)

    def edges(self) -> tuple[float, ...]:
        """The edges to draw."""
        return (float(self.low), float(self.high)) if self.is_boxed and not self.choices else ()

    def axis(self) -> dict[str, Any]:
        """Plotly's type, range and ticks."""
        if self.choices:
            texts = [in_figure(choice) for choice in self.choices]
            return {"range": [-0.5, self.high + 0.5], "tickvals": list(range(len(texts))), "ticktext": texts}
        low, high = (math.log10(v) if self.log else float(v) for v in (self.low, self.high))
        margin = _MARGIN * (high - low) or 0.5
        plain: dict[str, Any] = {"type": "log" if self.log else "linear", "range": [low - margin, high + margin]}
        if self.log:
            plain |= {"dtick": "D2" if high - low < 1.2 else math.ceil((high - low) / 3), "tickformat": "~g"}
        return plain | {"nticks": 4}


def scales(study: StudyResults) -> list[Scale]:
    """What was varied, in the order of the search space; then what trials have beyond it."""
    boxes = searched_edges(study.record)
    names = list(dict.fromkeys([*boxes, *(name for trial in study.finished for name in trial.trial.params)]))
    found = []
    for name in names:
        values = [trial.trial.params[name] for trial in study.finished if name in trial.trial.params]
        box = boxes.get(name)
        if not values:
            continue
        if box is not None and all(_is_number(value) for value in values):
            fits = [value for value in map(_number, values) if not box.log or value > 0]
            low, high = min([box.low, *fits]), max([box.high, *fits])
            is_inside = (low, high) == (box.low, box.high)
            found.append(Scale(name=name, hyperparameter=box.name, low=low, high=high, log=box.log, is_boxed=is_inside))
        elif (scale := _tried(name, values)) is not None:
            found.append(scale)
    return found


def _tried(name: str, values: Sequence[Any]) -> Scale | None:
    """From the values alone; None if there is only one."""
    if all(_is_number(value) for value in values):
        numbers = [_number(value) for value in values]
        low, high = min(numbers), max(numbers)
        if low == high:
            return None
        log = low > 0 and high / low > 20
        return Scale(name=name, hyperparameter=name, low=low, high=high, log=log, is_boxed=False)
    choices = tuple(sorted({_text(value) for value in values}))
    if len(choices) < 2:
        return None
    return Scale(name=name, hyperparameter=name, low=0, high=len(choices) - 1, log=False, choices=choices)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float:
    return float(value)


def _text(value: Any) -> str:
    return str(value)
