"""What a smaller budget would have shown."""

from __future__ import annotations

from kftune.dashboard.figures.budget import place_names, plot_best_over_budget, slider_data, studies_over_budget
from kftune.dashboard.figures.sorted_losses import plot_sorted_losses
from kftune.dashboard.panels._entry import PanelEntry
from kftune.dashboard.panels._subject import Subject, nothing_yet
from kftune.dashboard.parts import Figure, Missing, Panel, Part, Slider

__all__ = ["ENTRIES"]


def budget_panel(subject: Subject) -> Panel:
    """Sorted losses, best configuration and ranking at every t up to the budget."""
    return Panel(
        key="budget",
        title="If the budget had been smaller",
        sentence="Move the slider: losses, best configurations and ranking as they were at that moment of every run. "
        "All configurations were proposed for the whole budget, so a search at the smaller one would have found "
        "others.",
        parts=[_slider(subject)],
    )


def _slider(subject: Subject) -> Part:
    file, problem = subject.file, subject.problem
    over = studies_over_budget(file, problem)
    figure = plot_sorted_losses(file, problem, styles=subject.styles)
    if not over or figure is None:
        return Missing(nothing_yet(subject))
    beside = plot_best_over_budget(file, problem, styles=subject.styles, over=over)
    return Slider(
        figure=Figure(figure, f"sorted {subject.what} of all trials on {problem} at the chosen budget"),
        data=slider_data(file, problem, over, is_log=figure.layout.yaxis.type == "log"),
        label="budget (s of training)" if over[0].across == "train_seconds" else "budget (updates)",
        places=place_names(over[0]),
        beside=None
        if beside is None
        else Figure(beside, f"lowest {subject.what} of every optimizer against the budget"),
    )


ENTRIES = (
    PanelEntry(
        name="budget",
        summary="what a smaller budget would have shown",
        scope="problem",
        place=40,
        make=budget_panel,
    ),
)
