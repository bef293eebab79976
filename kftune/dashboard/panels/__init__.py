"""The panels of the page, in its order. Each is a function from a :class:`Subject` to a :class:`Panel`.

A new panel is one function, and one entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kftune.dashboard.panels._subject import Subject
from kftune.dashboard.panels.across_problems import across_panel
from kftune.dashboard.panels.budget import budget_panel
from kftune.dashboard.panels.costs import anatomy_panel, batch_panel
from kftune.dashboard.panels.health import health_panel
from kftune.dashboard.panels.hyperparameters import hyperparameters_panel
from kftune.dashboard.panels.losses import learning_curves_panel, sorted_losses_panel
from kftune.dashboard.panels.tunability import tunability_panel
from kftune.dashboard.panels.verdict import verdict_panel
from kftune.dashboard.parts import Panel

__all__ = ["FILE_PANELS", "PROBLEM_PANELS", "Subject"]

PROBLEM_PANELS: Sequence[Callable[[Subject], Panel]] = (
    verdict_panel,
    sorted_losses_panel,
    learning_curves_panel,
    budget_panel,
    tunability_panel,
    hyperparameters_panel,
    batch_panel,
    anatomy_panel,
)
"""About one problem."""

FILE_PANELS: Sequence[Callable[[Subject], Panel]] = (across_panel, health_panel)
"""About all problems of a study file."""
