"""The verdict on a problem, printed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kftune.progress.output import counted, print_table, say
from kftune.wording import duration, loss, number, objective_title, outcome_title

if TYPE_CHECKING:
    from kftune.analysis.ranking.targets import PerformanceProfile, TimeToTarget
    from kftune.analysis.ranking.verdict import ProblemVerdict, VerdictRow
    from kftune.analysis.trust.paired import PairComparison
    from kftune.analysis.trust.superiority import SuperiorityMatrix
    from kftune.analysis.tuning.gate import HuggedEdge

__all__ = ["edge_advice", "failures", "print_times", "print_verdict", "seed_counts", "seeds_title"]


def print_verdict(verdict: ProblemVerdict) -> None:
    """Print who is best on a problem, what is not settled yet, and each pair."""
    _print_rows(verdict)
    for row in verdict.rows:
        if row.is_provisional:
            _print_provisional(row)
    if verdict.matrix is not None:
        _print_matrix(verdict.matrix)
    for pair in verdict.comparisons:
        say(_pair(pair, len(verdict.comparisons)))


def _print_rows(verdict: ProblemVerdict) -> None:
    objective = objective_title(verdict.objective)
    heading = f"{verdict.file_name}, {verdict.problem}:"
    if not verdict.is_confirmed:
        if verdict.budget_factor == 1:
            say(f"{heading} by tuned {objective}, not confirmed", bold=True)
        else:
            say(f"{heading} nothing is confirmed at {verdict.budget_factor:g} times the budget", bold=True)
        print_table(
            ("", "optimizer", f"tuned {objective}", "seconds", "updates", "failed runs"),
            [(_rank(row), _name(row), _loss(row.loss), *_costs(row)) for row in verdict.rows],
            right=("", f"tuned {objective}", "seconds", "updates"),
            wrap=("optimizer", "failed runs"),
        )
        return
    factor = "" if verdict.budget_factor == 1 else f", {verdict.budget_factor:g} times the budget"
    say(f"{heading} by confirmed {objective} ({seeds_title(verdict)}{factor})", bold=True)
    seeds = seed_counts(verdict)
    columns = ["", "optimizer", "confirmed", "95 % interval", "tuned", "seconds", "updates", "failed runs"]
    rows = [
        [
            _rank(row),
            _name(row),
            _loss(row.loss) if row.is_confirmed else "–",
            "–" if row.interval is None else f"{loss(row.interval[0])} to {loss(row.interval[1])}",
            _loss(row.tuned),
            *_costs(row),
        ]
        for row in verdict.rows
    ]
    if seeds:
        columns.insert(4, "seeds")
        for cells, count in zip(rows, seeds, strict=True):
            cells.insert(4, count or "–")
    print_table(
        columns,
        rows,
        right=("", "confirmed", "95 % interval", "seeds", "tuned", "seconds", "updates"),
        wrap=("optimizer", "95 % interval", "seeds", "failed runs"),
    )


def seeds_title(verdict: ProblemVerdict) -> str:
    """How many fresh seeds a confirmed ranking is of: ``5 fresh seeds``, ``3 to 5 fresh seeds``."""
    counts = [row.n_seeds for row in verdict.rows if row.is_confirmed]
    least, most = min(counts), max(counts)
    return counted(most, "fresh seed") if least == most else f"{least} to {most} fresh seeds"


def seed_counts(verdict: ProblemVerdict) -> list[str]:
    """Of every row the seeds that count, ``4 of 5`` where one crashed; empty for one that is not confirmed.

    No list at all where every confirmed one was trained on equally many and none crashed: the heading says it.
    """
    confirmed = [row for row in verdict.rows if row.is_confirmed]
    if len({row.n_seeds for row in confirmed}) == 1 and not any(row.n_uncounted for row in confirmed):
        return []
    return [_seeds(row) if row.is_confirmed else "" for row in verdict.rows]


def _seeds(row: VerdictRow) -> str:
    return f"{row.n_seeds} of {row.n_seeds + row.n_uncounted}" if row.n_uncounted else str(row.n_seeds)


def _rank(row: VerdictRow) -> str:
    return "–" if row.rank is None else str(row.rank)


def _name(row: VerdictRow) -> str:
    return f"{row.optimizer} *" if row.is_provisional else row.optimizer


def _loss(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else loss(value)


def _costs(row: VerdictRow) -> tuple[str, str, str]:
    if row.trial is None:
        return "–", "–", failures(row) or "–"
    seconds = number(row.train_seconds, 3) if row.train_seconds > 0 else "–"
    updates = f"{row.updates:.0f}" if row.updates > 0 else "–"
    return seconds, updates, failures(row) or "–"


def failures(row: VerdictRow) -> str:
    """Outcomes other than completed, of the search's runs, then of the confirming ones; empty if all completed."""
    searched, confirming = _failed(row.outcomes), _failed(row.confirm_outcomes)
    return "; ".join([*([searched] if searched else []), *([f"confirm: {confirming}"] if confirming else [])])


def _failed(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {outcome_title(outcome)}" for outcome, n in outcomes.items() if outcome != "completed")


def _print_provisional(row: VerdictRow) -> None:
    if row.better_trial is not None:
        better = f"trial {row.better_trial} is better in the search and not confirmed: kftune confirm again"
        say(f"* {row.optimizer} is provisional: {better}")
    if row.n_finished < row.n_trials:
        say(f"* {row.optimizer} is provisional: {row.n_finished} of {row.n_trials} trials are done")
    for edge in row.edges:
        if edge.is_provisional:
            say(f"* {row.optimizer} is provisional: {edge_advice(edge)}")


def edge_advice(edge: HuggedEdge) -> str:
    """What the best trials hug, and the box to try next."""
    n = round(edge.share * edge.n_best)
    side = "upper" if edge.edge == "high" else "lower"
    text = f"{n} of its best {edge.n_best} trials are at the {side} edge of {edge.dimension} ({_box(edge.box)})"
    if edge.wider is None:
        return f"{text}, which is its limit"
    return f"{text}; try {_box(edge.wider)}" + (f", {edge.note}" if edge.note else "")


def _box(box: tuple[float, float]) -> str:
    return f"{number(box[0])} to {number(box[1])}"


def _print_matrix(matrix: SuperiorityMatrix) -> None:
    names = matrix.optimizers
    say("\nProbability that the row's loss is below the column's on one seed")
    short = [str(i) for i in range(1, len(names) + 1)]
    print_table(
        ("", "", *short),
        [
            (short[i], name, *("–" if cell is None else f"{cell.probability:.2f}" for cell in matrix.cells[i]))
            for i, name in enumerate(names)
        ],
        right=short,
        wrap=("",),
    )
    say()


def _pair(pair: PairComparison, n_pairs: int) -> str:
    low, high = (number(end, 3) for end in pair.interval)
    verb = "is better than" if pair.is_different else "is not shown to be better than"
    return (
        f"{pair.first} {verb} {pair.second}: difference {number(pair.difference, 3)} ({low} to {high}), "
        f"p = {number(pair.p_holm, 2)}" + (" after Holm's correction" if n_pairs > 1 else "")
    )


def print_times(times: Sequence[TimeToTarget], profiles: Sequence[PerformanceProfile]) -> None:
    """Print how long each optimizer takes to a target, and AlgoPerf's score over several problems."""
    if not times:
        return
    unit = "seconds" if times[0].across == "train_seconds" else "updates"
    factor = "" if times[0].budget_factor == 1 else f", with {times[0].budget_factor:g} times the budget"
    say(f"\n{unit} of training until the mean loss of the best configuration is first at the target{factor}", bold=True)
    is_of_several = len({time.file_name for time in times}) > 1
    print_table(
        (*(["study"] if is_of_several else []), "problem", "optimizer", "target", unit, "runs"),
        [
            (
                *([time.file_name] if is_of_several else []),
                time.problem,
                time.optimizer,
                number(time.target),
                _time(time),
                _runs_of(time),
            )
            for time in times
        ],
        right=("target", unit),
        wrap=("study", "problem", "optimizer"),
    )
    if len({(time.file_name, time.problem) for time in times}) > 1 and profiles:
        scores = ", ".join(f"{profile.optimizer} {profile.score:.2f}" for profile in profiles)
        say(f"AlgoPerf's score over these problems (1: the fastest everywhere): {scores}")


def _time(time: TimeToTarget) -> str:
    if math.isnan(time.time):
        return "–"
    return "never" if math.isinf(time.time) else duration(time.time)


def _runs_of(time: TimeToTarget) -> str:
    if time.is_confirmed:
        return "confirming"
    return "not confirmed" if math.isnan(time.time) else "of the search"
