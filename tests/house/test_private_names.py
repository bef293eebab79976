"""A name with a leading underscore, of a module or in one, is used in the folder that defines it and below it only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "kftune").rglob("*.py"))


def dotted(path: Path) -> str:
    """``kftune/a/b.py`` → ``kftune.a.b``, ``kftune/a/__init__.py`` → ``kftune.a``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path) for path in FILES}
FOLDERS = {dotted(path) for path in FILES if path.name == "__init__.py"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def folder_of(module: str) -> str:
    """Where a module's own names are defined: a package's in its folder, another module's in the folder it lies in."""
    return module if module in FOLDERS else module.rpartition(".")[0]


def strangers(path: str, user: str) -> Iterator[str]:
    """Private parts of a dotted path that may not be used in the folder ``user``."""
    parts = path.split(".")
    for i, part in enumerate(parts[1:], start=1):
        owner = folder_of(".".join(parts[:i]))
        if is_private(part) and not f"{user}.".startswith(f"{owner}."):
            yield ".".join(parts[: i + 1])


class Names(ast.NodeVisitor):
    """What a module uses of kftune: dotted paths with their lines."""

    def __init__(self, module: str) -> None:
        self.folder = folder_of(module)
        self.bound: dict[str, str] = {}
        self.used: list[tuple[int, str]] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.used.append((node.lineno, alias.name))
            top = alias.name.partition(".")[0]
            self.bound[alias.asname or top] = alias.name if alias.asname else top

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.folder.split(".")[: len(self.folder.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            path = f"{base}.{alias.name}"
            self.used.append((node.lineno, path))
            if path in MODULES:
                self.bound[alias.asname or alias.name] = path

    def visit_Attribute(self, node: ast.Attribute) -> None:
        parts, value = [node.attr], node.value
        while isinstance(value, ast.Attribute):
            parts.append(value.attr)
            value = value.value
        if isinstance(value, ast.Name) and value.id in self.bound:
            self.used.append((node.lineno, ".".join([self.bound[value.id], *reversed(parts)])))
        self.generic_visit(node)


def found(source: str, module: str) -> list[str]:
    """``line: name`` for every private name of kftune that the module may not use."""
    names = Names(module)
    tree = ast.parse(source)
    for node in ast.walk(tree):  # imports first, wherever they stand: attributes go by what they bind
        if isinstance(node, ast.Import):
            names.visit_Import(node)
        elif isinstance(node, ast.ImportFrom):
            names.visit_ImportFrom(node)
    names.used, imported = [], names.used
    names.visit(tree)
    paths = [(line, path) for line, path in (*imported, *names.used) if path.startswith("kftune.")]
    return sorted({f"{line}: {name}" for line, path in paths for name in strangers(path, names.folder)})


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_private_names_are_used_where_they_are_defined(path: Path) -> None:
    assert found(path.read_text(encoding="utf-8"), dotted(path)) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from kftune.problems._base import Split", ["1: kftune.problems._base"]),
        ("from kftune.problems import _base", ["1: kftune.problems._base"]),
        ("import kftune.problems._base", ["1: kftune.problems._base"]),
        ("from kftune.problems.digits import _digits", ["1: kftune.problems.digits._digits"]),
        (
            "def f():\n    from kftune.problems import digits\n    digits._digits",
            ["3: kftune.problems.digits._digits"],
        ),
        ("import kftune.problems.digits as d\nd._digits()", ["2: kftune.problems.digits._digits"]),
        ("import kftune.problems.digits\nkftune.problems.digits._digits()", ["2: kftune.problems.digits._digits"]),
        ("from ..problems import _base", ["1: kftune.problems._base"]),
        ("from kftune._registry import Registry\nfrom kftune import __version__", []),
        ("from kftune.cli._options import AsJson\nfrom kftune.cli import _options\n_options._x", []),
        ("import numpy._core\nself._x\nfrom kftune.problems import digits\ndigits.ENTRIES", []),
    ],
)
def test_it_sees_every_way_to_use_one(source: str, expected: list[str]) -> None:
    assert found(source, "kftune.cli.some_command") == expected
