"""What a page is made of, as lists of plain data."""

from __future__ import annotations

from typing import Any

__all__ = ["figure_entries", "panel_entries"]


def figure_entries() -> list[dict[str, Any]]:
    """Every figure that can be had alone, in the order in which they are listed."""
    from kftune.dashboard.figures import figures_in_order

    return [
        {"name": entry.name, "about": entry.scope, "shows": entry.sentence, "at": entry.has_at}
        for entry in figures_in_order()
    ]


def panel_entries() -> list[dict[str, Any]]:
    """Every panel, in the order of the page."""
    from kftune.dashboard.panels import panels_of

    return [
        {"name": entry.name, "about": entry.scope, "shows": entry.summary}
        for entry in (*panels_of("problem"), *panels_of("file"))
    ]
