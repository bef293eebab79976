"""From a file, or from stored plain data, to a checked :class:`StudyConfig`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kftune._targets import is_target
from kftune.errors import ConfigError
from kftune.study.config._flaws import Flaws, Location
from kftune.study.config._models import StudyConfig
from kftune.study.config._overrides import apply_overrides
from kftune.study.config._plans import plans_and_flaws
from kftune.study.config._storage import storage_url
from kftune.study.config._yaml import parse_mapping, read_mapping

__all__ = ["StudyLocation", "config_from_dict", "load_config", "locate_study", "parse_config"]


@dataclass(frozen=True, kw_only=True)
class StudyLocation:
    """Where the results of a study file are: its name, and the URL of its database."""

    name: str
    storage: str


def load_config(path: Path | str, overrides: Iterable[str] = ()) -> StudyConfig:
    """Read and check a study file.

    Args:
        path: of the YAML file.
        overrides: ``key.path=value`` each, applied in order before anything is checked.

    Raises:
        ConfigError: all that is wrong, a line each.
        UserCodeError: a target's own code failed.
    """
    return config_from_dict(read_mapping(Path(path)), str(path), overrides, directory=Path(path).parent)


def parse_config(text: str, source: str) -> StudyConfig:
    """Check the text of a study file.

    Args:
        text: YAML.
        source: where it comes from, for messages.

    Raises:
        ConfigError: all that is wrong, a line each.
    """
    return config_from_dict(parse_mapping(text, source), source)


def config_from_dict(
    data: Mapping[str, Any], source: str, overrides: Iterable[str] = (), *, directory: Path | None = None
) -> StudyConfig:
    """Check plain data, e.g. what :meth:`StudyConfig.to_dict` made.

    Args:
        data: the mapping of a study file.
        source: where it comes from, for messages.
        overrides: ``key.path=value`` each, applied in order before anything is checked.
        directory: of the study file, where modules of targets are looked for unless it says where; None for none.

    Raises:
        ConfigError: all that is wrong, a line each.
        UserCodeError: a target's own code failed.
    """
    data, locations = apply_overrides(dict(data), overrides)
    data = _with_module_dir(data, directory)

    def source_of(location: Location) -> str:
        # A flaw of what was set, or of a mapping in which something was set.
        touched = any(all(a == b for a, b in zip(location, set_, strict=False)) for set_ in locations)
        return "--set" if touched else source

    flaws = Flaws()
    try:
        config = StudyConfig.model_validate(data)
    except ValidationError as error:
        flaws.add_all(error, StudyConfig)
        flaws.raise_if_any(source_of)
        raise
    _, flaws = plans_and_flaws(config)
    flaws.raise_if_any(source_of)
    return config


def _with_module_dir(data: dict[str, Any], directory: Path | None) -> dict[str, Any]:
    """``module_dir`` made absolute, or the study file's directory if targets need one."""
    given = data.get("module_dir")
    if isinstance(given, str):
        return {**data, "module_dir": str(((directory or Path()) / Path(given).expanduser()).resolve())}
    if given is None and directory is not None and _has_targets(data):
        return {**data, "module_dir": str(directory.resolve())}
    return data


def _has_targets(data: Mapping[str, Any]) -> bool:
    lists = [data.get("problems"), data.get("optimizers"), [data.get("sampler")]]
    items = [item for found in lists if isinstance(found, list | tuple) for item in found]
    named = [item.get("target") if isinstance(item, dict) else item for item in items]
    return any(isinstance(name, str) and is_target(name) for name in named)


def locate_study(path: Path | str) -> StudyLocation:
    """Where a study file's results are, without checking the rest of it (and without importing torch).

    Raises:
        ConfigError: the file cannot be read, or has no name or no usable storage.
    """
    data = read_mapping(Path(path))
    name, storage = data.get("name"), data.get("storage")
    if not isinstance(name, str):
        raise ConfigError("is missing or not text", source=str(path), path="name")
    try:
        return StudyLocation(name=name, storage=storage_url(storage if storage is not None else f"{name}.db"))
    except ValueError as error:
        raise ConfigError(str(error), source=str(path), path="storage") from None
