"""Saved states against the optimizer that loads them: by name and by shape, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Kept(NamedTuple):
    """A tensor as an optimizer keeps it.

    Attributes:
        shape: its shape; None where it cannot be told.
        dtype: its type; None where torch knows best.
    """

    shape: tuple[int, ...] | None
    dtype: torch.dtype | None


def in_own_order(saved: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The groups of a state dict with the parameters of each in an optimizer's own order, told apart by their names.

    A state dict without names is taken by position.

    Args:
        saved: ``state_dict["param_groups"]``.
        names: the optimizer's parameters, group by group.

    Raises:
        ValueError: it names the first parameter that only one of the two has, or that is in another group.
    """
    groups = [dict(group) for group in saved]
    if len(groups) != len(names):
        raise ValueError(f"the state_dict has {len(groups)} parameter groups, this optimizer has {len(names)}")
    found = [_numbers(group) for group in groups]
    numbers = [own for own in found if own is not None]
    if len(numbers) < len(groups):
        for i, (group, own) in enumerate(zip(groups, names, strict=True)):
            if len(group["params"]) != len(own):
                raise ValueError(
                    f"the state_dict has {len(group['params'])} parameters in group {i}, this optimizer has {len(own)}"
                )
        return groups
    theirs = {name: i for i, own in enumerate(numbers) for name in own}
    mine = {name: i for i, own in enumerate(names) for name in own}
    _check_names("parameter", theirs, mine)
    for name, i in mine.items():
        if theirs[name] != i:
            raise ValueError(f"parameter {name!r} is in group {theirs[name]} of the state_dict, and in group {i} here")
    for group, number, own in zip(groups, numbers, names, strict=True):
        group["params"], group["param_names"] = [number[name] for name in own], list(own)
    return groups


def _numbers(group: Mapping[str, Any]) -> dict[str, int] | None:
    """Name → number in the state dict; None where the group has no names."""
    names = group.get("param_names") or ()
    return dict(zip(names, group["params"], strict=True)) if len(names) == len(group["params"]) else None


def _check_names(what: str, theirs: Iterable[str], mine: Iterable[str]) -> None:
    """Refuse two sets of names that differ.

    Raises:
        ValueError: it names the first that only one of them has.
    """
    known, own = set(theirs), set(mine)
    for name in mine:
        if name not in known:
            raise ValueError(
                f"the state_dict has no {what} {name!r}, which this optimizer has: is it of another model?"
            )
    for name in theirs:
        if name not in own:
            raise ValueError(
                f"the state_dict has a {what} {name!r}, which this optimizer has not: is it of another model?"
            )


def check_layers(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuse a state of other layers.

    Raises:
        ValueError: it names the first that only one of the two has.
    """
    _check_names("layer", theirs, mine)


def check_shape(what: str, found: Iterable[int], wanted: Iterable[int | None]) -> None:
    """Refuse a tensor of another shape.

    Args:
        what: names it, e.g. ``"exp_avg of parameter '0.weight'"``.
        found: the saved one's shape.
        wanted: the shape that the optimizer keeps; None stands for any length.

    Raises:
        ValueError: it says both.
    """
    found, wanted = tuple(found), tuple(wanted)
    if len(found) != len(wanted) or any(n is not None and n != m for n, m in zip(wanted, found, strict=True)):
        shown = f"({', '.join('any' if n is None else str(n) for n in wanted)}{',' if len(wanted) == 1 else ''})"
        raise ValueError(f"the state_dict's {what} has the shape {found}, here it is {shown}: is it of another model?")


def tensors_in(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """(key, tensor) of what is kept of one parameter or layer."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield key, value


def by_name(
    groups: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]], state: Mapping[Any, Any]
) -> dict[str, Mapping[str, Any]]:
    """Parameter name → what a state dict keeps of it; nothing is an empty dictionary.

    Args:
        groups: of :func:`in_own_order`.
        names: the optimizer's parameters, group by group.
        state: ``state_dict["state"]``.
    """
    return {
        name: known if isinstance(known := state.get(number), Mapping) else {}
        for group, own in zip(groups, names, strict=True)
        for name, number in zip(own, group["params"], strict=True)
    }
