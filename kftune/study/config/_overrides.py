"""``--set key.path=value``: changes to a study file from the command line."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

from kftune._targets import is_target, target_name
from kftune.errors import ConfigError
from kftune.study.config._flaws import Location, show, unknown
from kftune.study.config._yaml import parse_value

__all__ = ["apply_overrides"]

_SEGMENT = re.compile(r"(?P<name>[^.\[\]]+)?(?P<indices>(?:\[\d+\])*)")
_SHORT_FORMS = ("problems", "optimizers", "sampler")  # where a bare name stands for {name: …} or {target: …}


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> tuple[dict[str, Any], list[Location]]:
    """A copy of ``data`` with every ``key.path=value`` applied in order, and the locations that were set.

    A path goes through mappings by key (``budget.seconds``) and through lists by index (``optimizers[1].fixed.lr``,
    ``optimizers.1.fixed.lr``) or by the item's label or name (``optimizers.kfac.fixed.lr``). Values are YAML.

    Raises:
        ConfigError: an override without ``=``, with an empty or impossible path, or a value that is not YAML.
    """
    data = copy.deepcopy(data)
    locations = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"must look like key.path=value, got {override!r}", source="--set")
        try:
            locations.append(_set(data, _segments(path.strip()), parse_value(text)))
        except _NoSuchPlaceError as error:
            raise ConfigError(str(error), source="--set", path=path.strip()) from None
    return data, locations


class _NoSuchPlaceError(Exception):
    """The path of an override leads nowhere."""


def _segments(path: str) -> list[str]:
    segments: list[str] = []
    for part in path.split("."):
        match = _SEGMENT.fullmatch(part)
        if match is None or not part:
            raise _NoSuchPlaceError("is not a key's path; write it like optimizers[1].fixed.lr")
        segments += [name for name in [match["name"]] if name]
        segments += re.findall(r"\d+", match["indices"])
    return segments


def _set(data: dict[str, Any], segments: list[str], value: Any) -> Location:
    """Set one value in place; mappings on the way are made where they are missing."""
    here: Any = data
    location: Location = ()
    for segment in segments[:-1]:
        key = _key(here, segment, location)
        location = (*location, key)
        if isinstance(here, dict) and here.get(key) is None:
            here[key] = {}
        if isinstance(here[key], str) and location[0] in _SHORT_FORMS and len(location) <= 2:
            here[key] = {"target" if is_target(here[key]) else "name": here[key]}
        here = here[key]
    key = _key(here, segments[-1], location)
    here[key] = value
    return (*location, key)


def _key(here: Any, segment: str, location: Location) -> str | int:
    """The key or index in ``here`` that ``segment`` means."""
    if isinstance(here, dict):
        return segment
    if not isinstance(here, list):
        raise _NoSuchPlaceError(f"leads into {show(here)}, which is neither a mapping nor a list")
    if segment.isdecimal():
        if int(segment) >= len(here):
            raise _NoSuchPlaceError(f"there is no item {segment}: {location[-1]} has {len(here)}, counted from 0")
        return int(segment)
    labels = [_label(item) for item in here]
    if segment not in labels:
        raise _NoSuchPlaceError(unknown("item", segment, filter(None, labels)))
    return labels.index(segment)


def _label(item: Any) -> str:
    """How the file itself calls a list's item."""
    if isinstance(item, dict):
        item = item.get("label") or item.get("name") or item.get("target")
    if not isinstance(item, str):
        return ""
    return target_name(item) if is_target(item) else item
