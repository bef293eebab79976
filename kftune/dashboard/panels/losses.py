"""Sorted losses and learning curves."""

from __future__ import annotations

from collections.abc import Mapping

from kftune.analysis.stored.curves import Across
from kftune.dashboard.figures import plot_learning_curves, plot_sorted_losses
from kftune.dashboard.figures.learning_curves import measures
from kftune.dashboard.panels._entry import PanelEntry
from kftune.dashboard.panels._subject import TOP, Subject, nothing_yet
from kftune.dashboard.parts import Panel, plots

__all__ = ["ENTRIES"]

_FEW = 6
_TITLES: Mapping[Across, str] = {"train_seconds": "against training time", "update": "against updates"}


def sorted_losses_panel(subject: Subject) -> Panel:
    """All trials of every optimizer, sorted by value (Fig. 5 of the thesis)."""
    figure = plot_sorted_losses(subject.file, subject.problem, styles=subject.styles)
    what = subject.what
    return Panel(
        key="sorted-losses",
        title=f"Sorted {what}{'es' if what.endswith('loss') else 's'}",
        sentence="A line that stays low far to the right belongs to an optimizer that works with many settings, not "
        "only with its luckiest; every trial that was started counts, those that failed too.",
        parts=[
            plots(
                [(figure, f"sorted {what} of all trials on {subject.problem}")],
                missing=nothing_yet(subject),
                symbols=True,
            )
        ],
    )


def learning_curves_panel(subject: Subject) -> Panel:
    """The best configurations against seconds and updates (Figs. 6 to 9 of the thesis)."""
    file, problem = subject.file, subject.problem
    # More would hide each other.
    top = max(1, min(TOP if len(subject.studies) <= _FEW else 1, subject.most_trials))
    drawn = [
        (
            plot_learning_curves(file, problem, across=across, measure=measure, top=top, styles=subject.styles),
            f"{measure.replace('_', ' ')} of the best configurations on {problem} {_TITLES[across]}",
        )
        for measure in measures(file, problem)
        for across in _TITLES
    ]
    others = f"the next {top - 1}" if top > 2 else "the next"
    return Panel(
        key="learning-curves",
        title="Learning curves of the best configurations",
        sentence="First against seconds, then against updates: few but good steps show against updates, what they cost "
        "against seconds. "
        + (
            f"Thick: the best configuration, mean and range over its repeats that ended well; thin: {others}."
            if top > 1
            else "Each optimizer's best configuration: mean and range over its repeats that ended well."
        ),
        parts=[plots(drawn, missing=nothing_yet(subject))],
    )


ENTRIES = (
    PanelEntry(
        name="sorted-losses",
        summary="the losses of all trials, sorted",
        scope="problem",
        place=20,
        make=sorted_losses_panel,
    ),
    PanelEntry(
        name="learning-curves",
        summary="the best configurations against seconds and updates",
        scope="problem",
        place=30,
        make=learning_curves_panel,
    ),
)
