"""What a person sees while studies run: bars in a terminal, plain lines in a log."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kftune.progress.output import console, counted
from kftune.results import CurvePoint, Outcome, RunResult
from kftune.study.sessions.reporting import Reporter, RunKey, StudyTotals
from kftune.wording import cut, duration, number, objective_title, outcome_title

if TYPE_CHECKING:
    from kftune.study.config import StudyConfig
    from kftune.study.sessions.session import Interrupt

__all__ = ["LiveReporter", "Pace", "PlainReporter", "ProgressReporter", "make_reporter"]

_SECONDS_BETWEEN_LINES = 10.0
_REFRESHES_PER_SECOND = 4
_LONGEST_REASON = 300  # characters
_INTERRUPTED = "finishing the run in progress; Ctrl-C again stops at once"


class Pace:
    """How long the rest will take, from how long the runs of this session took.

    Args:
        n_runs: in all.
        n_done: stored by earlier sessions.
        guess_seconds: wall seconds per run to go by before the first has ended; None if there is nothing to go by.
    """

    def __init__(self, *, n_runs: int, n_done: int, guess_seconds: float | None) -> None:
        self.n_runs = n_runs
        self.n_done = n_done
        self._n_here = 0
        self._guess_seconds = guess_seconds
        self._started = self._last = time.monotonic()

    def run_finished(self) -> None:
        """One more is done."""
        self.n_done += 1
        self._n_here += 1
        self._last = time.monotonic()

    def run_at(self, share: float, *, n_at_a_time: int) -> None:
        """A run has done a share of its budget: something to go by until the first has ended."""
        if not self._n_here and share > 0:
            self._guess_seconds = (time.monotonic() - self._started) / share / n_at_a_time

    def runs_added(self, n: int) -> None:
        """So many more will be made; fewer, if negative."""
        self.n_runs += n

    def seconds_left(self) -> float | None:
        """An estimate; None while there is nothing to go by."""
        each = (self._last - self._started) / self._n_here if self._n_here else self._guess_seconds
        if each is None:
            return None
        return max(0.0, (self.n_runs - self.n_done) * each - (time.monotonic() - self._last))

    def left(self) -> str:
        """In words."""
        if self.n_done >= self.n_runs:
            return "done"
        seconds = self.seconds_left()
        return "time left unknown" if seconds is None else f"{_rounded(seconds)} left"


class ProgressReporter(Reporter):
    """Base of the two: counts, and what a run is doing. A context manager around the session."""

    def __init__(self, config: StudyConfig, out: Console) -> None:
        self._config = config
        self._out = out
        self._pace = Pace(n_runs=0, n_done=0, guess_seconds=None)
        self._n_at_a_time = 1
        self._several_problems = len(config.problems) > 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the display."""

    def started(self, totals: list[StudyTotals], devices: list[str]) -> None:
        """Say what is about to run."""
        n_runs, n_done = sum(t.n_runs for t in totals), sum(t.n_runs_done for t in totals)
        seconds = self._config.budget.seconds
        self._n_at_a_time = len(devices)
        guess = None if seconds is None else seconds / self._n_at_a_time
        self._pace = Pace(n_runs=n_runs, n_done=n_done, guess_seconds=guess)
        done = f", {n_done} of them done already" if n_done else ""
        self._out.print(
            f"{self._config.name}: {counted(len(totals), 'study', 'studies')} of "
            f"{counted(totals[0].n_trials, 'trial')}, {counted(n_runs, 'run')}{done}, "
            f"on {', '.join(devices)}, {self._pace.left()}",
            soft_wrap=True,
        )

    def point(self, key: RunKey, point: CurvePoint) -> None:
        """Learn how long a number of updates takes."""
        if self._config.budget.updates is not None:
            self._pace.run_at(point.update / self._updates(key), n_at_a_time=self._n_at_a_time)

    def run_finished(self, key: RunKey, result: RunResult) -> None:
        """Count it; say so if it failed in a way that is not the configuration's."""
        self._pace.run_finished()
        if result.outcome is Outcome.CRASHED:
            reason = (result.message.strip().splitlines() or ["no reason given"])[-1]
            self.message(f"{self._label(key.study)}, trial {key.trial}: a run crashed: {cut(reason, _LONGEST_REASON)}")

    def runs_skipped(self, study: str, n: int) -> None:
        """There is less to do."""
        self._pace.runs_added(-n)

    def runs_added(self, study: str, n: int) -> None:
        """There is more to do."""
        self._pace.runs_added(n)

    def message(self, text: str) -> None:
        """Print a line."""
        self._out.print(f"note: {text}", soft_wrap=True)

    @abstractmethod
    def interrupted(self) -> None:
        """An orderly end was asked for. Called from a signal handler."""

    def _label(self, study: str) -> str:
        """The study's name as far as it differs from the others'."""
        _, problem, optimizer = study.split("/")
        return f"{problem}/{optimizer}" if self._several_problems else optimizer

    def _updates(self, key: RunKey) -> int:
        """What a run is given under a budget of updates."""
        return max(1, round((self._config.budget.updates or 0) * key.budget_factor))

    def _doing(self, key: RunKey, point: CurvePoint | None) -> str:
        """One run in a line."""
        text = f"{self._label(key.study)}, trial {key.trial}, run {key.repeat + 1}/{self._config.repeats}"
        if point is None:
            return f"{text}: starting"
        budget = self._config.budget
        at = (
            f"{point.update}/{self._updates(key)} updates"
            if budget.updates is not None
            else f"{point.train_seconds:.1f}/{number((budget.seconds or 0.0) * key.budget_factor)} s"
        )
        return f"{text}: {at}, test loss {number(point.test_loss)}"


class PlainReporter(ProgressReporter):
    """A line per finished trial, and one every ten seconds while a trial takes longer."""

    def __init__(self, config: StudyConfig, out: Console) -> None:
        super().__init__(config, out)
        self._last_line = time.monotonic()
        self._outcomes: dict[tuple[str, int], list[Outcome]] = {}

    def point(self, key: RunKey, point: CurvePoint) -> None:
        """A sign of life."""
        super().point(key, point)
        if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._line(self._doing(key, point))

    def run_finished(self, key: RunKey, result: RunResult) -> None:
        """Remember how it ended."""
        super().run_finished(key, result)
        self._outcomes.setdefault((key.study, key.trial), []).append(result.outcome)

    def trial_finished(self, study: str, trial: int, value: float | None, best: float | None) -> None:
        """The trial's line."""
        failed = {outcome_title(o) for o in self._outcomes.pop((study, trial), []) if o is not Outcome.COMPLETED}
        why = f" ({', '.join(sorted(failed))})" if failed else ""
        self._line(f"{self._label(study)}, trial {trial}: {number(value)}{why}, best {number(best)}")

    def interrupted(self) -> None:
        """Print without Python's buffers: a signal handler may have interrupted a print."""
        os.write(2, f"{_INTERRUPTED}\n".encode())

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        done = f"{self._pace.n_done}/{self._pace.n_runs}"
        self._out.print(f"[{done} runs, {self._pace.left()}] {text}", soft_wrap=True)


class LiveReporter(ProgressReporter):
    """A bar per study, its best value, the runs in progress and the time left."""

    def __init__(self, config: StudyConfig, out: Console, interrupt: Interrupt) -> None:
        super().__init__(config, out)
        self._interrupt = interrupt
        self._totals: dict[str, StudyTotals] = {}
        self._done: dict[str, int] = {}
        self._best: dict[str, float | None] = {}
        self._running: dict[RunKey, tuple[str, CurvePoint | None]] = {}
        self._live = Live(
            get_renderable=self._render, console=out, refresh_per_second=_REFRESHES_PER_SECOND, transient=False
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last state of the bars on the screen."""
        self._running.clear()
        self._live.stop()

    def started(self, totals: list[StudyTotals], devices: list[str]) -> None:
        """Draw the bars."""
        super().started(totals, devices)
        self._done = {total.study: total.n_runs_done for total in totals}
        self._totals = {total.study: total for total in totals}
        self._live.start()

    def run_started(self, key: RunKey, device: str) -> None:
        """Show it."""
        self._running[key] = (device, None)

    def point(self, key: RunKey, point: CurvePoint) -> None:
        """Show how far it is."""
        super().point(key, point)
        self._running[key] = (self._running[key][0], point)

    def run_finished(self, key: RunKey, result: RunResult) -> None:
        """Move its study's bar."""
        super().run_finished(key, result)
        self._running.pop(key, None)
        self._done[key.study] += 1

    def runs_skipped(self, study: str, n: int) -> None:
        """Shorten its study's bar."""
        super().runs_skipped(study, n)
        self._totals[study] = replace(self._totals[study], n_runs=self._totals[study].n_runs - n)

    def runs_added(self, study: str, n: int) -> None:
        """Lengthen its study's bar."""
        super().runs_added(study, n)
        self._totals[study] = replace(self._totals[study], n_runs=self._totals[study].n_runs + n)

    def trial_finished(self, study: str, trial: int, value: float | None, best: float | None) -> None:
        """Show the best."""
        self._best[study] = best

    def interrupted(self) -> None:
        """Nothing here: the next refresh shows it."""

    def _render(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        for study, total in self._totals.items():
            done, best = self._done[study], self._best.get(study)
            grid.add_row(
                Text(self._label(study), overflow="ellipsis", no_wrap=True),
                ProgressBar(total=max(1, total.n_runs), completed=done, width=20),
                Text(f"{done}/{total.n_runs} runs", no_wrap=True),
                Text(f"best {number(best)}" if best is not None else "", no_wrap=True),
            )
        lines = [
            Text(f"{device}: {self._doing(key, point)}", overflow="ellipsis", no_wrap=True)
            for key, (device, point) in list(self._running.items())
        ]
        objective = objective_title(self._config.objective)
        last = _INTERRUPTED if self._interrupt.requested else f"{self._pace.left()} (values: {objective})"
        return Group(grid, *lines, Text(last))


def make_reporter(config: StudyConfig, interrupt: Interrupt, *, repeats: int | None = None) -> ProgressReporter:
    """Bars if the standard output is a terminal, else lines.

    Args:
        config: the study file.
        interrupt: whether an orderly end was asked for.
        repeats: runs of each trial, where they are not the study file's.
    """
    config = config if repeats is None else config.model_copy(update={"repeats": repeats})
    out = console()
    return LiveReporter(config, out, interrupt) if out.is_terminal else PlainReporter(config, out)


def _rounded(seconds: float) -> str:
    """An estimate should not pretend to know the second."""
    return duration(float(round(seconds)) if seconds < 120 else 60.0 * round(seconds / 60))
