"""Figures from stored results. Adding one is one file here with its ``ENTRIES``.

Each ``plot_x(...)`` draws what a ``_get_x_info(...)`` computed, so that the numbers can be tested without drawing.
"""

from kftune._registry import Registry
from kftune.dashboard.figures._entry import FigureEntry, Request, Scope
from kftune.dashboard.figures.learning_curves import plot_learning_curves
from kftune.dashboard.figures.sorted_losses import plot_sorted_losses

__all__ = [
    "FIGURES",
    "FigureEntry",
    "Request",
    "Scope",
    "figures_in_order",
    "plot_learning_curves",
    "plot_sorted_losses",
]

FIGURES: Registry[FigureEntry] = Registry("figure", "kftune.dashboard.figures", "kftune.figures")
"""Every figure that can be had alone, by its name."""


def figures_in_order() -> list[FigureEntry]:
    """As they are listed."""
    return sorted(FIGURES, key=lambda entry: (entry.place, entry.name))
