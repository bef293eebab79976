"""Momentum that changes from update to update, for any optimizer that has a momentum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    import torch

__all__ = [
    "MOMENTUM_GROWTHS",
    "MOMENTUM_GROWTH_STARTS",
    "GrowingMomentum",
    "MomentumGrowth",
    "MomentumGrowthStart",
    "growing_momentum",
    "momentum_after",
]

MomentumGrowth: TypeAlias = Literal["constant", "linear", "exponential", "one_minus_inverse"]
MOMENTUM_GROWTHS: tuple[str, ...] = get_args(MomentumGrowth)
MomentumGrowthStart: TypeAlias = Literal["second_update", "first_update"]
MOMENTUM_GROWTH_STARTS: tuple[str, ...] = get_args(MomentumGrowthStart)

# Not 0, for which torch's optimizers (and kftune's) keep no velocity; a product with it is lost in any sum.
_ALMOST_ZERO = 1e-300

_FORMULAS: Mapping[str, Callable[[int, float], float]] = {
    "constant": lambda k, rate: 1.0,
    "linear": lambda k, rate: 0.05 * k * rate,
    "exponential": lambda k, rate: 1 - math.exp(-0.1 * k * rate),
    "one_minus_inverse": lambda k, rate: 1 - 1 / (k + 1),
}


def momentum_after(k: int, *, growth: str, rate: float, largest: float) -> float:
    """The momentum of the update that follows ``k`` others.

    ``linear`` min(0.05·k·rate, largest), ``exponential`` min(1 − exp(−0.1·k·rate), largest), ``one_minus_inverse``
    min(1 − 1/(k + 1), largest), ``constant`` largest (Ulbæk 2022, section 5; the third is Martens & Grosse's 2015).

    Args:
        k: updates made, from 0.
        growth: one of :data:`MOMENTUM_GROWTHS`.
        rate: speed of ``linear`` and ``exponential``.
        largest: what it grows to.
    """
    return min(_FORMULAS[growth](k, rate), largest)


class GrowingMomentum:
    """Sets ``momentum`` of an optimizer's groups before every update; what it was at first is the largest.

    The papers' velocity is v_k = μ_k·v_{k−1} + d_k, with d_k the direction of the update that follows k others and
    μ_0 = 0: v_0 = d_0, v_1 = μ_1·d_0 + d_1. An optimizer in torch's form keeps no v while its momentum is 0, so that
    growth from 0 has v_1 = d_1 and never hears of d_0. ``start`` says which.

    Args:
        optimizer: whose groups have a momentum.
        growth: one of :data:`MOMENTUM_GROWTHS`.
        rate: see :func:`momentum_after`.
        start: the first update whose direction the velocity has: ``second_update``, torch's, or ``first_update``, the
            papers'.

    Raises:
        ValueError: an unknown growth or start, a negative rate, or no group has a momentum.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        growth: str,
        rate: float = 1.0,
        start: str = "second_update",
    ) -> None:
        if growth not in MOMENTUM_GROWTHS:
            raise ValueError(f"momentum_growth must be one of {', '.join(MOMENTUM_GROWTHS)}, got {growth!r}")
        if not 0 <= rate < math.inf:
            raise ValueError(f"momentum_growth_rate must be in [0, inf), got {rate}")
        if start not in MOMENTUM_GROWTH_STARTS:
            raise ValueError(f"momentum_growth_start must be one of {', '.join(MOMENTUM_GROWTH_STARTS)}, got {start!r}")
        self._groups = [group for group in optimizer.param_groups if isinstance(group.get("momentum"), int | float)]
        if not self._groups:
            raise ValueError(f"momentum_growth is for optimizers with a momentum, {type(optimizer).__name__} has none")
        self._largest = [float(group["momentum"]) for group in self._groups]
        self._growth, self._rate = growth, rate
        self._smallest = _ALMOST_ZERO if start == "first_update" else 0.0

    def set(self, k: int) -> None:
        """For the update that follows ``k`` others."""
        for group, largest in zip(self._groups, self._largest, strict=True):
            momentum = momentum_after(k, growth=self._growth, rate=self._rate, largest=largest)
            group["momentum"] = max(momentum, min(self._smallest, largest))


def growing_momentum(optimizer: torch.optim.Optimizer, params: Mapping[str, Any]) -> GrowingMomentum | None:
    """What the training loop's hyperparameters (:data:`kftune.results.MOMENTUM_PARAMETERS`) ask for.

    Args:
        optimizer: whose momentum grows.
        params: those that are given.

    Returns:
        None if the momentum is constant.

    Raises:
        ValueError: see :class:`GrowingMomentum`; or a rate or a start without a growth.
    """
    if "momentum_growth" not in params:
        if params:
            raise ValueError(f"{next(iter(params))} needs momentum_growth")
        return None
    rate, start = params.get("momentum_growth_rate", 1.0), params.get("momentum_growth_start", "second_update")
    return GrowingMomentum(optimizer, growth=params["momentum_growth"], rate=rate, start=start)
