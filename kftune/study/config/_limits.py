"""How far a sampler that may leave its box can go: as far as the optimizer's constructor lets it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kftune.space import Float, Space
from kftune.study.config._proposals import Middle
from kftune.training.loop.hyperparameters import split_by_owner

if TYPE_CHECKING:
    from kftune.optim import OptimizerEntry

__all__ = ["accepted_part"]

_N_HALVINGS = 40


def accepted_part(space: Space, *, widest: Space, entry: OptimizerEntry) -> Space:
    """``widest`` with the bounds that the optimizer refuses drawn in towards those of ``space``.

    Each bound is tried with everything else in the middle of its own range.

    Args:
        space: what was asked for; the optimizer accepts it.
        widest: the same dimensions, some of them wider.
        entry: the optimizer.
    """
    dimensions = dict(widest.dimensions)
    for name, own in space.dimensions.items():
        wide = dimensions[name]
        if not isinstance(own, Float) or not isinstance(wide, Float):
            continue
        low = _last_accepted(space, name, own.low, wide.low, entry)
        high = _last_accepted(space, name, own.high, wide.high, entry)
        dimensions[name] = replace(wide, low=low, high=high)
    return Space(dimensions, space.fixed)


def _last_accepted(space: Space, name: str, own: float, wide: float, entry: OptimizerEntry) -> float:
    """``wide`` if the optimizer accepts it, else about the last value on the way there that it does."""
    if own == wide or _accepts(space, name, wide, entry):
        return wide
    inside, outside = own, wide
    for _ in range(_N_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if _accepts(space, name, middle, entry) else (inside, middle)
    return inside


def _accepts(space: Space, name: str, value: float, entry: OptimizerEntry) -> bool:
    import torch

    dimension = space.dimensions[name]
    assert isinstance(dimension, Float)
    there = replace(dimension, low=value, high=value)
    params = Space({**space.dimensions, name: there}, space.fixed).suggest(Middle())
    if name not in params:
        return True  # another choice would be needed to have it at all; its runs will tell
    with torch.random.fork_rng(devices=[]):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    own, _ = split_by_owner(entry, params)
    try:
        entry.build(model, likelihood="categorical", params=own)
    except (ValueError, TypeError):
        return False
    return True
