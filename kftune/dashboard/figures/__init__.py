"""Figures from stored results.

Each ``plot_x(...)`` draws what a ``_get_x_info(...)`` computed, so that the numbers can be tested without drawing.
"""

from kftune.dashboard.figures.learning_curves import plot_learning_curves
from kftune.dashboard.figures.sorted_losses import plot_sorted_losses

__all__ = ["plot_learning_curves", "plot_sorted_losses"]
