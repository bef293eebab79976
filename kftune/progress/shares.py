"""What a person sees while a benchmark is made: how much is done, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kftune.wording import duration

__all__ = ["ShareProgress"]

_LINE_EVERY_SECONDS = 30.0


class ShareProgress:
    """On standard error: a bar per part in a terminal, else a line every half minute."""

    def __init__(self) -> None:
        out = Console(stderr=True, markup=False, highlight=False, emoji=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[left]}"))
        self._out = out
        self._bars = Progress(*columns, console=out, transient=True)
        self._said_at = time.monotonic()

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the bars away."""
        if self._out.is_terminal:
            self._bars.stop()

    def part(self, title: str) -> Callable[[str, float], None]:
        """Begin a part of the work; what comes back is told what was finished, and the share that is done."""
        task = self._bars.add_task(title, total=1.0, left="")
        began = time.monotonic()

        def told(what: str, share: float) -> None:
            now = time.monotonic()
            left = f"{duration(float(max(1, round((now - began) * (1 - share) / share))))} left" if share < 1 else ""
            self._bars.update(task, completed=share, description=what, left=left)
            if not self._out.is_terminal and now - self._said_at > _LINE_EVERY_SECONDS:
                self._said_at = now
                self._out.print(f"{title}: {share:.0%}, {left or 'done'}", soft_wrap=True)

        return told
