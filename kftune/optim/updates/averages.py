"""Running averages: weights without a bias towards an initial value, and the average of the iterates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

State: TypeAlias = MutableMapping[Tensor, dict[str, Any]]
"""A torch optimizer's: parameter → what is kept of it."""

Decay: TypeAlias = Callable[[int], float]
"""k → weight on the old value when the k-th value (k = 1, 2, …) is averaged in."""

_AVERAGE = "parameter_average"
_COUNT = "n_averaged"


def decay_of(k: int, factor_decay: float) -> float:
    """Weight on the old value in the k-th statistics update (k = 1, 2, …): min(1 − 1/k, factor_decay).

    The plain mean at first, then an exponential average: no bias towards an initial value (K-FAC, section 5).
    """
    return min(1 - 1 / k, factor_decay)


def debiased_decay_of(k: int, factor_decay: float) -> float:
    """Weight on the old value that makes the average of k values one with weights m^(k−1), …, m, 1, normalised.

    It is m(1 − m^(k−1))/(1 − m^k), m = ``factor_decay``.
    """
    if factor_decay == 1.0:
        return 1 - 1 / k
    return factor_decay * (1 - factor_decay ** (k - 1)) / (1 - factor_decay**k)


def lerped(olds: list[Tensor], news: list[Tensor], weight: float) -> list[Tensor]:
    """old + weight·(new − old), pair by pair. The olds stay as they are; the news are used up."""
    if any(old.device.type != "cpu" for old in olds):
        return list(torch._foreach_lerp(olds, news, weight))
    # Into memory that is there: on a CPU a large new tensor takes longer to get than to fill.
    return [torch.lerp(old, new, weight, out=new) for old, new in zip(olds, news, strict=True)]


def average_iterates(state: State, parameters: Iterable[nn.Parameter], decay: Decay, n: int) -> None:
    """θ̄ ← dθ̄ + (1 − d)θ in ``state[parameter]``, d = decay(k) for a parameter's k-th θ; the first is taken as it is.

    Args:
        state: where averages and counts are.
        parameters: those that are trained now; some may have been frozen before.
        decay: the weights.
        n: θ with this one of a parameter whose own were not counted, in a state of before.
    """
    by_count: dict[int, list[Tensor]] = {}
    for p in parameters:
        own = state[p]
        own[_COUNT] = own.get(_COUNT, n - 1 if _AVERAGE in own else 0) + 1
        if _AVERAGE not in own:
            own[_AVERAGE] = p.detach().clone()
        by_count.setdefault(own[_COUNT], []).append(p)
    for k, known in by_count.items():
        torch._foreach_lerp_([state[p][_AVERAGE] for p in known], known, 1 - decay(k))


@contextmanager
def averages_swapped_in(state: State) -> Iterator[None]:
    """Inside the block the parameters that have an average hold it."""
    averaged = [p for p in state if _AVERAGE in state[p]]
    current = [p.detach().clone() for p in averaged]
    try:
        _assign(averaged, [state[p][_AVERAGE] for p in averaged])
        yield
    finally:
        _assign(averaged, current)


@torch.no_grad()
def _assign(parameters: list[Tensor], values: list[Tensor]) -> None:
    if parameters:
        torch._foreach_copy_(parameters, values)
