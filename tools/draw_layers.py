#!/usr/bin/env python3
"""Draw the layers that pyproject.toml prescribes (import-linter's contracts of that type) into CONTRIBUTING.md.

``python tools/draw_layers.py`` rewrites what stands between the two markers there; with ``--check`` it writes nothing,
and exits with 1 if it would have. It needs nothing but Python.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["BEGIN", "END", "Box", "boxes_of", "draw", "main", "with_drawing"]

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- layers: written by tools/draw_layers.py -->"
END = "<!-- end of layers -->"

_WIDEST = 35  # of a floor's text, so that two boxes side by side fit a terminal of 80 columns
_GAP = "  "


class Box(NamedTuple):
    """One package whose modules are in layers.

    Attributes:
        title: the package's dotted name.
        floors: from the top down; each the modules that stand side by side on it, as ``"a | b"`` where they may not
            import each other, and as ``"a : b"`` where they may.
    """

    title: str
    floors: tuple[str, ...]


def boxes_of(pyproject: str) -> list[Box]:
    """The packages of all layers contracts, in the order of the file: one for each container of a contract.

    Args:
        pyproject: text of a pyproject.toml.
    """
    found = tomllib.loads(pyproject).get("tool", {}).get("importlinter", {}).get("contracts", [])
    return [box for contract in found if contract.get("type") == "layers" for box in _boxes(contract)]


def _boxes(contract: dict[str, Any]) -> list[Box]:
    floors = [re.split(r"\s*([|:])\s*", layer.strip()) for layer in contract["layers"]]
    if contract.get("containers"):
        return [Box(container, tuple(map(_floor, floors))) for container in contract["containers"]]
    # Without a container the names are whole ones: what they have in common is the container.
    parents = {name.strip("() ").rpartition(".")[0] for names in floors for name in names[::2]}
    title = parents.pop() if len(parents) == 1 else ""
    return [Box(title or "packages", tuple(_floor([n.replace(f"{title}.", "") for n in names]) for names in floors))]


def _floor(names: Sequence[str]) -> str:
    return " ".join(names)


def draw(boxes: Sequence[Box]) -> str:
    """The boxes in two columns, each box as high up as it can stand, in their order."""
    columns: tuple[list[str], list[str]] = ([], [])
    for box in boxes:
        shorter = min(columns, key=len)
        shorter += _lines(box)
    left, right = columns
    width = max(map(len, left), default=0)
    rows = max(len(left), len(right))
    left, right = ([*column, *[""] * (rows - len(column))] for column in columns)
    return "\n".join(f"{a:{width}}{_GAP}{b}".rstrip() for a, b in zip(left, right, strict=True))


def _lines(box: Box) -> list[str]:
    rule = "─" * (_WIDEST + 2)
    title = f"─ {box.title} "
    floors = [f"│ {part:{_WIDEST}} │" for floor in box.floors for part in _wrapped(floor)]
    return [f"┌{title}{rule[len(title) :]}┐", *floors, f"└{rule}┘"]


def _wrapped(floor: str) -> list[str]:
    """The floor in lines that fit a box, broken behind separators; all but the first are indented."""
    lines = [""]
    for part in re.findall(r"\S+(?: [|:])?", floor):
        longer = f"{lines[-1]} {part}" if lines[-1] else part
        if len(longer) <= _WIDEST or not lines[-1].strip():
            lines[-1] = longer
        else:
            lines.append(f"  {part}")
    return lines


def with_drawing(text: str, drawing: str) -> str:
    """``text`` with the drawing, in a code block, between its markers.

    Raises:
        ValueError: the two markers are not there, once each and in their order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before + after:
        raise ValueError(f"{BEGIN!r} and {END!r} must stand in the text, once each and in this order")
    return f"{before}{BEGIN}\n```text\n{drawing}\n```\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the drawing, or check it; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw the layers of pyproject.toml into CONTRIBUTING.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the drawing is out of date")
    check = parser.parse_args(arguments).check
    page = ROOT / "CONTRIBUTING.md"
    text = page.read_text(encoding="utf-8")
    drawn = with_drawing(text, draw(boxes_of((ROOT / "pyproject.toml").read_text(encoding="utf-8"))))
    if check:
        print(f"{page.name}: the drawing is {'up to date' if drawn == text else 'out of date'}")
        return int(drawn != text)
    page.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
