"""What a person sees while ``kftune profile`` measures."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from kftune.wording import duration

if TYPE_CHECKING:
    from kftune.training.profile import Progress

__all__ = ["ProfileProgress"]

_SHORT_SECONDS = 2.0


class ProfileProgress:
    """On standard error: a bar with the time left in a terminal, else a line per optimizer; nothing if it is short."""

    def __init__(self) -> None:
        out = Console(stderr=True, markup=False, highlight=False, emoji=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[left]}"))
        self._out = out
        self._bars = Bars(*columns, console=out, transient=True)
        self._task = self._bars.add_task("", total=None, left="")
        self._last_label: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bars.live.is_started:
            self._bars.stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far it is."""
        if progress.total_seconds < _SHORT_SECONDS:
            return
        left = f"{duration(float(max(1, round(progress.seconds_left))))} left"
        if self._out.is_terminal:
            done = max(0.0, progress.total_seconds - progress.seconds_left)
            self._bars.start()
            self._bars.update(
                self._task, description=progress.label, total=progress.total_seconds, completed=done, left=left
            )
        elif progress.label != self._last_label:
            self._out.print(f"{progress.label}: measuring, {left}", soft_wrap=True)
        self._last_label = progress.label
