"""What a panel is to the page: its place, and what makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from kftune.dashboard.panels._subject import Subject
from kftune.dashboard.parts import Panel

__all__ = ["PanelEntry"]


@dataclass(frozen=True, kw_only=True)
class PanelEntry:
    """One panel of the registry.

    Attributes:
        name: the ``key`` of the panels that it makes, for links and lists.
        summary: what it answers, in one line.
        scope: ``"problem"``: made once for every problem of a study file; ``"file"``: once, about all of them.
        place: panels of a scope stand in the order of their places, then of their names. Those of kftune are whole
            tens, so that others can stand between them.
        make: the panel about a :class:`Subject`. It reads stored results alone, and must make a panel (with a
            :class:`~kftune.dashboard.parts.Missing` that says why) when there are none yet.
    """

    name: str
    summary: str
    scope: Literal["problem", "file"]
    place: float
    make: Callable[[Subject], Panel]
