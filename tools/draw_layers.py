"""Draw the layers that import-linter enforces, from ``pyproject.toml`` into CONTRIBUTING.md.

``python tools/draw_layers.py`` writes the drawing anew; a test compares.
"""

from __future__ import annotations

import tomllib
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- layers: drawn by tools/draw_layers.py -->"
END = "<!-- end of layers -->"
_N_COLUMNS = 2
_GAP = "   "


def contracts() -> dict[str, list[str]]:
    """Package → its layers, the highest first, of every contract of layers."""
    found: dict[str, list[str]] = {}
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers":
            for container in contract.get("containers", [""]):
                found[container or "kftune"] = [_without_root(layer) for layer in contract["layers"]]
    return found


def _without_root(layer: str) -> str:
    names = layer.replace("(", "").replace(")", "").replace(":", "|").split("|")
    return " · ".join(name.strip().removeprefix("kftune.") for name in names)


def box(title: str, layers: list[str]) -> list[str]:
    """One package as lines of equal width: its name, then a line for each layer."""
    width = max(len(line) for line in (title, *layers))
    rule = "─" * (width + 2)
    cells = [f"│ {layer.ljust(width)} │" for layer in layers]
    return [title.ljust(width + 4), f"┌{rule}┐", *cells, f"└{rule}┘"]


def drawing() -> str:
    """All packages in columns of about the same height; imports point down within a box."""
    columns: list[list[str]] = [[] for _ in range(_N_COLUMNS)]
    for title, layers in contracts().items():
        shortest = min(columns, key=len)
        shortest += [*([""] if shortest else []), *box(title, layers)]
    widths = [max(map(len, column), default=0) for column in columns]
    rows = zip_longest(*columns, fillvalue="")
    lines = [_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def with_drawing(text: str) -> str:
    """The page with the drawing of today between its marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n```text\n{drawing()}\n```\n{END}{after}"


if __name__ == "__main__":
    page = ROOT / "CONTRIBUTING.md"
    page.write_text(with_drawing(page.read_text()))
