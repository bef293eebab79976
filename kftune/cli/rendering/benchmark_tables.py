"""The tables of ``kftune benchmark samplers``, for a terminal and as Markdown."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kftune.progress.output import print_table, say
from kftune.wording import number

if TYPE_CHECKING:
    from kftune.study.benchmarking.benchmark import Benchmark, Comparison

__all__ = ["machine", "markdown", "print_benchmark"]

_NONE = "–"
_PACKAGES = ("kftune", "optuna", "GPyOpt", "GPy", "numpy", "scipy", "torch")
_SECONDS_TITLE = "Seconds per suggestion (of CPU time), by number of observations"
_REGRET_COLUMNS = ("function", "sampler", "median", "quartiles", "seeds", "first wins", "first/this")
_MEANINGS = (
    "regret: the loss, without noise, of the trial with the least observed value, in % above the least loss there is; "
    "median and quartiles over seeds. All samplers share a seed's optimum, noise and random first trials.",
    "first wins: share of seeds on which the first sampler's regret is smaller than this one's, ties half.",
    "first/this: geometric mean over seeds of the first sampler's regret over this one's, with a 95% interval; below 1 "
    "the first is better. Regrets below 0.1% count as that.",
    "rank: 1 is the best; mean over the functions and seeds that all samplers searched.",
)


def machine() -> dict[str, str]:
    """Where it is measured, and with what."""
    import torch

    from kftune.training.host import device_name

    return {
        "cpu": device_name(torch.device("cpu")),
        "cores": str(os.cpu_count()),
        "threads": os.environ.get("OMP_NUM_THREADS", "not limited"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    } | {name: importlib.metadata.version(name) for name in _PACKAGES}


def print_benchmark(result: Benchmark) -> None:
    """Print the tables, at most 80 columns wide."""
    if result.timings:
        columns = _seconds_columns(result)
        say(_SECONDS_TITLE, bold=True)
        print_table(columns, _seconds_rows(result), right=columns[1:], wrap=("sampler",))
    if result.regrets:
        say("\nRegret in %" if result.timings else "Regret in %", bold=True)
        print_table(_REGRET_COLUMNS, _regret_rows(result), right=_REGRET_COLUMNS[2:], wrap=("sampler",))
        say("\nAll functions", bold=True)
        columns = ("sampler", "rank", "first wins", "first/this")
        print_table(columns, _overall_rows(result), right=columns[1:], wrap=("sampler",))
        say()
        for line in _MEANINGS:
            say(line)


def markdown(result: Benchmark, command: str) -> str:
    """The tables with the machine and the command line that made them."""
    from kftune.study.benchmarking.test_functions import TEST_FUNCTIONS

    at = machine()
    words = ", ".join([f"{at['cpu']} ({at['cores']} cores)", at["system"], f"Python {at['python']}"])
    versions = ", ".join(f"{name} {at[name]}" for name in _PACKAGES)
    parts = ["# Samplers", f"{words}; {versions}; OMP_NUM_THREADS: {at['threads']}.", f"```console\n{command}\n```"]
    if result.timings:
        parts += [f"## {_SECONDS_TITLE}"]
        parts += [_table(_seconds_columns(result), _seconds_rows(result), n_text=1)]
    if result.regrets:
        n_trials = result.regrets[0].n_trials
        names = dict.fromkeys(regret.function for regret in result.regrets)
        functions = [
            f"* `{name}`: {TEST_FUNCTIONS[name].summary}; noise {TEST_FUNCTIONS[name].noise:.0%}" for name in names
        ]
        parts += [f"## Regret in % after {n_trials} trials"]
        parts += [_table(_REGRET_COLUMNS, _regret_rows(result), n_text=2)]
        parts += [
            "## All functions",
            _table(("sampler", "rank", "first wins", "first/this"), _overall_rows(result), n_text=1),
        ]
        parts += ["\n".join(functions), "\n".join(f"* {line}" for line in _MEANINGS)]
    return "\n\n".join(parts) + "\n"


def _seconds_columns(result: Benchmark) -> tuple[str, ...]:
    return ("sampler", *(str(n) for n in sorted({timing.observations for timing in result.timings})))


def _seconds_rows(result: Benchmark) -> list[tuple[str, ...]]:
    shown = {
        (t.contestant, t.observations): f"{number(t.seconds, 2)} ({number(t.cpu_seconds, 2)})" for t in result.timings
    }
    numbers = sorted({timing.observations for timing in result.timings})
    return [(label, *(shown.get((label, n), _NONE) for n in numbers)) for label in result.labels]


def _regret_rows(result: Benchmark) -> list[tuple[str, ...]]:
    import numpy as np

    from kftune.study.benchmarking.benchmark import comparisons

    compared = {(c.function, c.other): c for c in comparisons(result.regrets, contestant=result.labels[0])}
    rows: list[tuple[str, ...]] = []
    for function in dict.fromkeys(regret.function for regret in result.regrets):
        for i, label in enumerate(result.labels):
            own = [100 * r.regret for r in result.regrets if (r.function, r.contestant) == (function, label)]
            if not own:
                continue
            low, median, high = np.quantile(own, [0.25, 0.5, 0.75])
            cells = (f"{median:.1f}", f"{low:.1f}–{high:.1f}", str(len(own)))
            rows.append((function if i == 0 else "", label, *cells, *_compared(compared.get((function, label)))))
    return rows


def _overall_rows(result: Benchmark) -> list[tuple[str, ...]]:
    from kftune.study.benchmarking.benchmark import comparisons, ranks

    compared = {c.other: c for c in comparisons(result.regrets, contestant=result.labels[0]) if c.function is None}
    mean_ranks = ranks(result.regrets)
    return [
        (label, f"{mean_ranks[label]:.2f}" if label in mean_ranks else _NONE, *_compared(compared.get(label)))
        for label in result.labels
    ]


def _compared(comparison: Comparison | None) -> tuple[str, str]:
    if comparison is None:
        return _NONE, _NONE
    interval = f"{comparison.ratio:.2f} ({comparison.low:.2f}–{comparison.high:.2f})"
    return f"{comparison.wins:.0%}", interval


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, n_text: int) -> str:
    ruler = ["---"] * n_text + ["---:"] * (len(columns) - n_text)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ruler, *rows))
