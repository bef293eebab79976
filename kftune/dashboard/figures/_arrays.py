"""Numbers for figures: as small as a picture allows, and no more of them than an eye can see."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Floats", "floats", "spread_out", "visible", "wholes"]

Floats: TypeAlias = npt.NDArray[np.float32]

_LARGEST = 3e38  # of a float32


def floats(values: Iterable[float | None]) -> Floats:
    """Single precision, seven digits: more than a picture shows, at half the size. None is a gap."""
    plain = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    return np.clip(plain, -_LARGEST, _LARGEST).astype(np.float32)


def wholes(values: Iterable[int]) -> npt.NDArray[Any]:
    """Counts and numbers, in as few bytes as the largest needs."""
    plain = np.array(list(values), dtype=np.int64)
    fits = plain.size == 0 or (plain.min() >= 0 and plain.max() < 2**16)
    return plain.astype(np.uint16 if fits else np.int32)


def visible(
    x: Sequence[float], y: Sequence[float], kinds: Sequence[Hashable], *, steps: int = 400, at_start: int = 25
) -> list[int]:
    """Which points of a line to draw so that leaving out the others cannot be seen.

    Kept are the first ones, the last, each that is the first of its kind after another kind, and each that is at
    least one of ``steps`` parts of the drawn width or height away from the one kept before it.

    Args:
        x: rising.
        y: as drawn, that is, logarithms on a logarithmic axis.
        kinds: what else a point shows; a change of it is drawn.
        steps: resolution of the picture.
        at_start: how many of the first points are kept whatever they are.
    """
    if len(x) <= steps:
        return list(range(len(x)))
    width, height = (x[-1] - x[0]) / steps, (max(y) - min(y)) / steps
    kept = list(range(at_start))
    for i in range(at_start, len(x)):
        last = kept[-1]
        is_far = abs(x[i] - x[last]) >= width or abs(y[i] - y[last]) >= height
        if is_far or kinds[i] != kinds[last] or i == len(x) - 1:
            kept.append(i)
    return kept


def spread_out(n: int, most: int) -> list[int]:
    """At most ``most`` of ``n`` ranked things: the first few, an eighth of them, and of the others every so-manieth.

    No more at the front, or a cloud of marks would look denser among the best than it is.
    """
    if n <= most:
        return list(range(n))
    front = most // 8
    behind = np.linspace(front, n - 1, most - front).round().astype(int)
    return [*range(front), *behind.tolist()]
