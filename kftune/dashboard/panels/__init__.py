"""The panels of the page. Adding one is one file here with its ``ENTRIES``."""

from __future__ import annotations

from typing import Literal

from kftune._registry import Registry
from kftune.dashboard.panels._entry import PanelEntry
from kftune.dashboard.panels._subject import Subject

__all__ = ["PANELS", "PanelEntry", "Subject", "panels_of"]

PANELS: Registry[PanelEntry] = Registry("panel", "kftune.dashboard.panels", "kftune.panels")
"""Every panel, by its name."""


def panels_of(scope: Literal["problem", "file"]) -> list[PanelEntry]:
    """Those about one problem, or about a whole study file, in the order of the page."""
    return sorted((entry for entry in PANELS if entry.scope == scope), key=lambda entry: (entry.place, entry.name))
