"""The table of a study's best configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.table import Table

from kftune.cli.rendering.verdict_tables import edge_advice
from kftune.progress.output import console, counted, say, table
from kftune.wording import number, objective_title

if TYPE_CHECKING:
    from kftune.analysis.tuning.best import BestConfiguration, StudyBest

__all__ = ["print_best"]

_UNLIMITED = 10_000


def print_best(found: Sequence[StudyBest]) -> None:
    """Print one table per study."""
    for i, study in enumerate(found):
        if i:
            say()
        _print_study(study)


def _print_study(study: StudyBest) -> None:
    best = study.configurations
    objective = objective_title(study.objective)
    trials = counted(study.n_finished, "trial")
    if not best:
        none = f"none of {trials} ended well" if study.n_finished else "no result yet (0 trials)"
        say(f"{study.problem}, {study.optimizer}: {none}", bold=True)
        return
    say(f"{study.problem}, {study.optimizer}: best {len(best)} of {trials}", bold=True)
    varied = study.searched
    columns = ("", objective, "spread", *varied, "updates", "trial")
    rows = [
        (str(c.rank), number(c.value), number(c.spread, 2), *_cells(c, varied), f"{c.updates:.0f}", str(c.trial))
        for c in best
    ]
    fitting = [made for gap in (2, 1) if _fits(made := table(columns, rows, right=columns, gap=gap))]
    console().print(fitting[0] if fitting else _narrow(study, rows))
    if study.fixed:
        say(f"fixed: {', '.join(f'{name}={_shown(value)}' for name, value in study.fixed.items())}")
    for edge in study.edges:
        if edge.is_provisional:
            say(f"provisional: {edge_advice(edge)}")


def _fits(made: Table) -> bool:
    """Whether it fits, measured without the console's width, to which it would be cut."""
    out = console()
    return Measurement.get(out, out.options.update(width=_UNLIMITED), made).maximum <= out.width


def _narrow(study: StudyBest, rows: Sequence[Sequence[str]]) -> Table:
    """The same with all hyperparameters in one column."""
    right = ("", objective_title(study.objective), "spread", "updates", "trial")
    listed = [
        " ".join(f"{name}={cell}" for name, cell in zip(study.searched, row[3:-2], strict=True) if cell) for row in rows
    ]
    cells = [(*row[:3], *row[-2:], text) for row, text in zip(rows, listed, strict=True)]
    return table((*right, "hyperparameters"), cells, right=right, wrap=("hyperparameters",))


def _cells(configuration: BestConfiguration, names: Sequence[str]) -> list[str]:
    return [_shown(configuration.params[name]) if name in configuration.params else "" for name in names]


def _shown(value: object) -> str:
    return "null" if value is None else number(value)
