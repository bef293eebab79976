"""Printing: tables that fit the terminal, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["console", "counted", "print_json", "print_table", "say", "table"]


def console() -> Console:
    """A console on the standard output of this moment. Text is shown as it is: no markup, no colours for numbers."""
    return Console(markup=False, highlight=False, emoji=False)


def say(text: str = "", *, bold: bool = False, whole: bool = False) -> None:
    """Print text, broken at words into lines.

    Args:
        text: what.
        bold: as a heading.
        whole: leave long lines to the terminal, so that a command or a path in them can be copied.
    """
    console().print(Text(text, style="bold" if bold else ""), soft_wrap=whole)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
    wrap: Sequence[str] = (),
    gap: int = 2,
) -> Table:
    """A table of plain text.

    Args:
        columns: their headings.
        rows: cells.
        right: the columns of numbers.
        wrap: the columns that may be broken into lines to make the table fit.
        gap: spaces between columns, at least 1.
    """
    padding = (0, gap - 1, 0, 0)
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=padding)
    for column in columns:
        made.add_column(
            Text(column),
            justify="right" if column in right else "left",
            overflow="fold" if column in wrap else "ellipsis",
            no_wrap=column not in wrap,
        )
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = (), wrap: Sequence[str] = ()
) -> None:
    """Print :func:`table`."""
    console().print(table(columns, rows, right=right, wrap=wrap))


def counted(n: int, one: str, many: str = "") -> str:
    """``1 run``, ``2 runs``."""
    return f"1 {one}" if n == 1 else f"{n} {many or f'{one}s'}"


def print_json(data: Any) -> None:
    """Print plain data as JSON, at once; what JSON has no number for (infinity, NaN) is null."""
    print(json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False), flush=True)


def _finite(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return None
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data
