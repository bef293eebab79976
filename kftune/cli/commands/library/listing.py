"""``kftune list``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import typer

from kftune.cli._options import AsJson
from kftune.cli.rendering.page_parts import figure_entries, panel_entries
from kftune.progress.output import print_json, print_table, say

__all__ = ["list_"]

Kind = Literal["optimizers", "problems", "samplers", "panels", "figures"]
_KINDS: tuple[Kind, ...] = ("optimizers", "problems", "samplers")


def list_(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; the first three by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what a study file may name: optimizers, problems, samplers; or what a page is made of: panels, figures."""
    kinds = _KINDS if kind is None else (kind,)
    if as_json:
        found = {kind: _entries(kind) for kind in kinds}
        print_json(found if kind is None else found[kind])
        return
    for i, each in enumerate(kinds):
        if kind is None:
            say(f"\n{each}" if i else each, bold=True)
        entries = _entries(each)
        columns = [key for key in entries[0] if key not in {"source", "searched"}]
        rows = [[_short(entry[key]) if key == "paper" else _cell(entry[key]) for key in columns] for entry in entries]
        print_table(columns, rows, right=("train", "test"), wrap=("options", "paper", "summary", "shows"))
    if kind == "figures":
        say("\nOne alone: kftune figure NAME --out FILE")
    elif kind != "panels":
        say("\nMore about one: kftune describe NAME")


def _entries(kind: Kind) -> list[dict[str, Any]]:
    if kind == "optimizers":
        from kftune.optim import OPTIMIZERS

        return [
            {
                "name": entry.name,
                "order": 2 if entry.second_order else 1,
                "searched": [d.sampled_name(name) for name, d in entry.space.dimensions.items()],
                "paper": entry.paper,
                "summary": entry.summary,
            }
            for entry in OPTIMIZERS
        ]
    if kind == "problems":
        from kftune.problems import PROBLEMS

        return [
            {
                "name": entry.name,
                "train": entry.n_train,
                "test": entry.n_test,
                "dataset": entry.dataset,
                "summary": entry.summary,
                "source": entry.source,
            }
            for entry in PROBLEMS
        ]
    if kind == "panels":
        return panel_entries()
    if kind == "figures":
        return figure_entries()
    from kftune.study.samplers import SAMPLERS

    return [
        {"name": entry.name, "options": list(entry.options), "summary": entry.summary, "source": entry.source}
        for entry in SAMPLERS
    ]


def _short(paper: str) -> str:
    """``"Martens, Grosse 2015"`` of ``"Martens, Grosse: Optimizing neural …, 2015"``."""
    authors, _, rest = paper.partition(":")
    year = re.search(r"\b(?:19|20)\d\d\b", rest)
    return f"{authors} {year.group()}" if year else authors


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "–"
    return "–" if value is None else str(value)
