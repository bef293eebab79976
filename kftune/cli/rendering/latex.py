"""Tables for papers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kftune.cli.rendering.verdict_tables import failures, seed_counts, seeds_title
from kftune.wording import loss, number, objective_title

if TYPE_CHECKING:
    from kftune.analysis.ranking.verdict import ProblemVerdict, VerdictRow

__all__ = ["escaped", "verdict_table"]

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escaped(text: str) -> str:
    """Text that LaTeX shows as it is; line breaks become spaces."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def verdict_table(verdict: ProblemVerdict) -> str:
    """A ``table`` environment with the verdict on one problem; needs the package ``booktabs``."""
    objective = objective_title(verdict.objective)
    seeds = seed_counts(verdict) if verdict.is_confirmed else []
    factor = "" if verdict.budget_factor == 1 else f"{verdict.budget_factor:g} times the budget"
    if verdict.is_confirmed:
        of = f"{seeds_title(verdict)} with {factor}" if factor else seeds_title(verdict)
        interval = "95 % interval (Student's t, within the losses that there can be)"
        caption = f"{verdict.problem}: {objective} on {of}, mean and {interval}."
    else:
        caption = f"{verdict.problem}: {objective} of the best trial, on the seeds it was chosen on."
        caption += f" Nothing is confirmed at {factor}." if factor else ""
    marks = []
    if any(row.is_provisional for row in verdict.rows):
        marks.append(
            "* provisional: the search is not done, its best trial is not confirmed, or its best trials are at an edge "
            "of the search space."
        )
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escaped(' '.join([caption, *marks]))}}}",
            rf"  \begin{{tabular}}{{lr{'r' if seeds else ''}rrrl}}",
            r"    \toprule",
            rf"    Optimizer & Confirmed {'& Seeds ' if seeds else ''}& Tuned & Seconds & Updates & Failed runs \\",
            r"    \midrule",
            *(f"    {_row(row, seeds[i] if seeds else None)}" for i, row in enumerate(verdict.rows)),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _row(row: VerdictRow, seeds: str | None) -> str:
    name = escaped(row.optimizer) + ("*" if row.is_provisional else "")
    if row.is_confirmed and row.interval is not None:
        confirmed = f"{_number(loss(row.loss))} [{_number(loss(row.interval[0]))}, {_number(loss(row.interval[1]))}]"
    else:
        confirmed = _number(loss(row.loss)) if row.is_confirmed else "--"
    tuned = "--" if row.tuned is None or math.isnan(row.tuned) else _number(loss(row.tuned))
    costs = ("--", "--") if row.trial is None else (number(row.train_seconds, 3), f"{row.updates:.0f}")
    counted = [] if seeds is None else [seeds or "--"]
    failed = escaped(failures(row)) or "--"
    return " & ".join([name, confirmed, *counted, tuned, *map(_number, costs), failed]) + r" \\"


def _number(text: str) -> str:
    """``1.2e-5`` as a power of ten."""
    mantissa, is_power, exponent = text.partition("e")
    return rf"${mantissa}\cdot 10^{{{int(exponent)}}}$" if is_power else f"${mantissa}$"
