"""Reading YAML, the one place where it is done: YAML 1.2's scalars, no duplicate keys, errors on one line."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from kftune.errors import ConfigError, suggestion

__all__ = ["parse_mapping", "parse_value", "read_mapping"]


class _Loader(yaml.SafeLoader):
    """A safe loader that reads ``1e-3`` as a number, leaves dates, ``on`` and ``1:30`` alone, and refuses duplicates.

    PyYAML follows YAML 1.1, where ``1e-3`` is text (no dot), ``on`` is true and ``1:30`` is ninety.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys are text and stand once."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refused(f"a key must be text, got {key!r}", key_node)
            if key in seen:
                raise _refused(f"the key {key!r} stands twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _refused(message: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


_Loader.yaml_implicit_resolvers = {}  # PyYAML's own follow YAML 1.1
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
    ("merge", r"^(?:<<)$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is not there, cannot be read, is empty, is not YAML or not a mapping.
    """
    source = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no such file{_near_files(path)}", source=source) from None
    except IsADirectoryError:
        raise ConfigError("is a directory, not a study file", source=source) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not a YAML file: byte {error.start} is not UTF-8 text", source=source) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=source) from None
    return parse_mapping(text, source)


def parse_mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text.

    Raises:
        ConfigError: it is empty, not YAML or not a mapping.
    """
    data = _load(text, source=source)
    if data is None:
        raise ConfigError("is empty; `kftune init` writes a study file to start from", source=source)
    if not isinstance(data, dict):
        raise ConfigError(f"must hold a mapping (key: value), got {_kind(data)}", source=source)
    return data


def parse_value(text: str) -> Any:
    """The value of one ``--set key=value``.

    Raises:
        ConfigError: it is not YAML.
    """
    return _load(text, source="--set")


def _load(text: str, *, source: str) -> Any:
    try:
        # _Loader is a SafeLoader: it constructs plain data only.
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or ""
        if error.context and problem.startswith("but "):  # PyYAML's sentence begins in the context
            problem = f"{error.context}, {problem}"
        raise ConfigError(f"{where}{problem or error.context}", source=source) from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"is not a YAML file: {error.reason} at position {error.position}", source=source) from None
    except RecursionError:
        raise ConfigError("is nested too deeply", source=source) from None


def _near_files(path: Path) -> str:
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    names = [p.name for p in siblings if p.suffix in {".yaml", ".yml"}]
    return suggestion(path.name, names).partition(" (available")[0]


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"{value!r}"
