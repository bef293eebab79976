"""What an optimizer does to each parameter of a model, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kftune.progress.output import print_table, say
from kftune.wording import number, percent

if TYPE_CHECKING:
    from kftune.training.coverage import TreatedParameter

__all__ = ["coverage", "print_coverage"]


def coverage(
    optimizer: str, problem: str, params: Mapping[str, Any], found: Sequence[TreatedParameter]
) -> dict[str, Any]:
    """Plain data: every parameter, and the share of all scalars that each treatment has, largest first."""
    counts: Counter[str] = Counter()
    for parameter in found:
        counts[parameter.treatment] += parameter.n
    total = counts.total()
    return {
        "kind": "coverage",
        "optimizer": optimizer,
        "problem": problem,
        "hyperparameters": dict(params),
        "n_parameters": total,
        "treatments": [
            {"treatment": treatment, "n": n, "share": n / total if total else 0.0}
            for treatment, n in counts.most_common()
        ],
        "parameters": [{"name": p.name, "shape": list(p.shape), "n": p.n, "treatment": p.treatment} for p in found],
    }


def print_coverage(described: Mapping[str, Any]) -> None:
    """Print it."""
    say(f"{described['optimizer']} on {described['problem']}: what it does to each parameter", bold=True)
    if described["hyperparameters"]:
        shown = ", ".join(f"{name}={number(value)}" for name, value in described["hyperparameters"].items())
        say(f"with {shown}")
    say()
    print_table(
        ("parameter", "shape", "number", "treatment"),
        [
            (p["name"], "×".join(map(str, p["shape"])) or "scalar", str(p["n"]), p["treatment"])
            for p in described["parameters"]
        ],
        right=("number",),
        wrap=("parameter", "treatment"),
    )
    say(f"\n{described['n_parameters']} parameters", bold=True)
    print_table(
        ("treatment", "number", "share"),
        [(t["treatment"], str(t["n"]), percent(t["share"])) for t in described["treatments"]],
        right=("number", "share"),
        wrap=("treatment",),
    )
