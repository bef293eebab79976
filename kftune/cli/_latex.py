"""Tables for papers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kftune.dashboard.formatting import loss, number, objective_title, outcome_title

if TYPE_CHECKING:
    from kftune.analysis.verdict import ProblemVerdict, VerdictRow

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
    n_seeds = max((row.n_seeds for row in verdict.rows if row.is_confirmed), default=0)
    if verdict.is_confirmed:
        caption = f"{verdict.problem}: {objective} on {n_seeds} fresh seeds, mean and 95 % interval (Student's t)."
    else:
        caption = f"{verdict.problem}: {objective} of the best trial, on the seeds it was chosen on."
    marks = []
    if any(row.is_provisional for row in verdict.rows):
        marks.append("* provisional: the search is not done, or its best trials are at an edge of the search space.")
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escaped(' '.join([caption, *marks]))}}}",
            r"  \begin{tabular}{lrrrrl}",
            r"    \toprule",
            r"    Optimizer & Confirmed & Tuned & Seconds & Updates & Failed runs \\",
            r"    \midrule",
            *(f"    {_row(row)}" for row in verdict.rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _row(row: VerdictRow) -> str:
    name = escaped(row.optimizer) + ("*" if row.is_provisional else "")
    if row.is_confirmed and row.interval is not None:
        confirmed = f"{_number(loss(row.loss))} [{_number(loss(row.interval[0]))}, {_number(loss(row.interval[1]))}]"
    else:
        confirmed = _number(loss(row.loss)) if row.is_confirmed else "--"
    tuned = "--" if row.tuned is None or math.isnan(row.tuned) else _number(loss(row.tuned))
    costs = ("--", "--") if row.trial is None else (number(row.train_seconds, 3), f"{row.updates:.0f}")
    failed = ", ".join(f"{n} {outcome_title(outcome)}" for outcome, n in row.outcomes.items() if outcome != "completed")
    return " & ".join([name, confirmed, tuned, *map(_number, costs), escaped(failed) or "--"]) + r" \\"


def _number(text: str) -> str:
    """``1.2e-5`` as a power of ten."""
    mantissa, is_power, exponent = text.partition("e")
    return rf"${mantissa}\cdot 10^{{{int(exponent)}}}$" if is_power else f"${mantissa}$"
