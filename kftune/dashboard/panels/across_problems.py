"""Problems beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kftune.analysis.ranking.targets import PerformanceProfile, performance_profiles, times_to_target
from kftune.analysis.ranking.transfer import Transfer, transfers
from kftune.analysis.tuning.spread import ANYWHERE, OptimizerSpread, optimizer_spreads
from kftune.dashboard.figures.across_problems import plot_best_regions, plot_performance_profiles, shared_dimensions
from kftune.dashboard.panels._entry import PanelEntry
from kftune.dashboard.panels._subject import Subject
from kftune.dashboard.parts import DASH, Cell, Figure, Missing, Panel, Part, Plots, Table, name_of, plots
from kftune.wording import loss, number, percent

__all__ = ["ENTRIES"]

_PROFILES = (
    "problems on which an optimizer's best configuration reaches the target, the upper median of the optimizers' "
    "losses, within a multiple of the fastest one's seconds: high on the left is best; the score is the mean "
    "up to the dotted line"
)
_SYMBOLS = ("●", "■", "◆", "▲", "✚", "✖", "★", "⬢")


def across_panel(subject: Subject) -> Panel:
    """Where the best configurations lie on each problem, how they transfer, and how fast targets are reached."""
    file = subject.file
    parts: list[Part] = [
        Missing("There is one problem in this study file: name several in `problems` to see whether optima move.")
    ]
    if len(file.problems) > 1:
        spreads = optimizer_spreads([file])
        names = shared_dimensions(spreads)
        drawn = [(name, plot_best_regions(file, name, styles=subject.styles, spreads=spreads)) for name in names]
        figures = [
            Figure(figure, f"where the best {name} lies on each problem")
            for name, figure in drawn
            if figure is not None
        ]
        figures.sort(key=lambda part: -part.figure.layout.height)  # side by side, those of a height leave no gap
        parts = [Missing("No optimizer has three trials that ended well on each of two problems.")]
        if figures:
            parts = [_spread_table(spreads, names, file.problems), Plots(figures)]
        parts.append(_transfer_part(transfers([file])))
        parts.append(
            plots(
                [(plot_performance_profiles(file, styles=subject.styles), "performance profiles over the problems")],
                missing="Performance profiles need a problem on which an optimizer reaches the target.",
                caption="Performance profiles",
                note=_PROFILES,
            )
        )
        parts += _scores(performance_profiles(times_to_target(file)), len(file.problems))
    return Panel(
        key="across-problems",
        title="Across problems",
        sentence="Where each optimizer's best tenth (at least three trials) lies on each problem, on common axes: "
        "marks below each other need little tuning. The spread is 0 if the best is always in the same place of the "
        f"box, {number(ANYWHERE, 2)} if it may be anywhere.",
        parts=parts,
    )


def _spread_table(spreads: list[OptimizerSpread], names: list[str], problems: tuple[str, ...]) -> Table:
    header = [Cell("optimizer", "text"), Cell("spread"), *(Cell(name) for name in names)]
    rows = []
    for spread in sorted(spreads, key=lambda spread: (math.isnan(spread.spread), spread.spread)):
        by_name = {dimension.sampled_name: dimension.spread for dimension in spread.dimensions}
        rows.append(
            [
                name_of(spread.optimizer),
                _number(spread.spread, "main"),
                *(_number(by_name.get(name, math.nan), "number") for name in names),
            ]
        )
    marks = ", ".join(f"{_SYMBOLS[i % len(_SYMBOLS)]}\u00a0{problem}" for i, problem in enumerate(problems))
    return Table(header, rows, caption="Spread of the best over the problems", note=f"in the figures: {marks}")


def _scores(profiles: Sequence[PerformanceProfile], n_problems: int) -> list[Part]:
    rows = [
        [
            name_of(profile.optimizer),
            Cell(number(profile.score, 2), "main"),
            Cell(f"{sum(ratio < math.inf for ratio in profile.ratios)} of {n_problems}"),
        ]
        for profile in sorted(profiles, key=lambda profile: -profile.score)
    ]
    return [Table([Cell("optimizer", "text"), Cell("score"), Cell("targets reached")], rows)] if rows else []


def _number(value: float, kind: str) -> Cell:
    return DASH if math.isnan(value) else Cell(number(value, 2), kind)


def _transfer_part(found: list[Transfer]) -> Part:
    known = [transfer for transfer in found if transfer.loss is not None]
    if not known:
        return Missing(
            "How well one problem's best configuration does on another is known once it was tried there: "
            "`warm_start` in the study file enqueues it."
        )
    header = [
        Cell("optimizer", "text"),
        Cell("best on", "text"),
        Cell("tried on", "text"),
        Cell("loss there"),
        Cell("own best there"),
        Cell("regret", title="0: as good as the own best; 100 %: no better than not training"),
        Cell("rank there"),
    ]
    rows = [
        [
            name_of(t.optimizer),
            Cell(t.source, "text"),
            Cell(t.target, "text"),
            Cell("not evaluated", "none") if t.loss is None else Cell(loss(t.loss), "main"),
            DASH if t.own_best is None else Cell(loss(t.own_best)),
            DASH if t.regret is None else Cell(percent(t.regret)),
            DASH if t.rank_there is None else Cell(f"{t.rank_there} of {t.n_there}"),
        ]
        for t in found
    ]
    return Table(header, rows, caption="Transfer", note="the best configuration of one problem on another")


ENTRIES = (
    PanelEntry(
        name="across-problems",
        summary="whether what is best on one problem is best on others",
        scope="file",
        place=10,
        make=across_panel,
    ),
)
