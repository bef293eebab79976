"""``kftune list``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from kftune.cli._options import AsJson
from kftune.cli._output import print_json, print_table, say

__all__ = ["list_"]

Kind = Literal["optimizers", "problems", "samplers"]
_KINDS: tuple[Kind, ...] = ("optimizers", "problems", "samplers")


def list_(
    kind: Annotated[Kind | None, typer.Argument(help="What to list; all three by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what a study file may name: optimizers, problems, samplers."""
    kinds = _KINDS if kind is None else (kind,)
    if as_json:
        found = {kind: _entries(kind) for kind in kinds}
        print_json(found if kind is None else found[kind])
        return
    for i, each in enumerate(kinds):
        if kind is None:
            say(f"\n{each}" if i else each, bold=True)
        entries = _entries(each)
        columns = [key for key in entries[0] if key not in {"source", "paper"}]
        rows = [[_cell(entry[key]) for key in columns] for entry in entries]
        headings = [column.replace("_", " ") for column in columns]
        print_table(headings, rows, right=("train", "test"), wrap=("searched", "options", "summary"))
    say("\nMore about one: kftune describe NAME")


def _entries(kind: Kind) -> list[dict[str, Any]]:
    if kind == "optimizers":
        from kftune.optim import OPTIMIZERS

        return [
            {
                "name": entry.name,
                "order": 2 if entry.second_order else 1,
                "searched": [d.sampled_name(name) for name, d in entry.space.dimensions.items()],
                "summary": entry.summary,
                "paper": entry.paper,
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
    from kftune.study.samplers import SAMPLERS

    return [
        {"name": entry.name, "options": list(entry.options), "summary": entry.summary, "source": entry.source}
        for entry in SAMPLERS
    ]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "–"
    return "–" if value is None else str(value)
