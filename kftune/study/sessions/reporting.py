"""What the runner tells whoever watches it. The CLI draws it; the default is silence."""

from __future__ import annotations

from dataclasses import dataclass

from kftune.results import CurvePoint, RunResult

__all__ = ["Reporter", "RunKey", "StudyTotals"]


@dataclass(frozen=True)
class RunKey:
    """Which run: study name, trial number from 0, repeat from 0, multiple of the study's budget."""

    study: str
    trial: int
    repeat: int
    budget_factor: float = 1.0


@dataclass(frozen=True)
class StudyTotals:
    """Size of one study at the start of a session: how many runs it has in all, and how many are stored already."""

    study: str
    n_trials: int
    n_runs: int
    n_runs_done: int
    n_trials_done: int


class Reporter:
    """Does nothing; override what is of interest. Called from the runner's thread only."""

    def started(self, totals: list[StudyTotals], devices: list[str]) -> None:
        """The studies are registered and about to go on, on these device slots."""

    def run_started(self, key: RunKey, device: str) -> None:
        """A worker was given a run."""

    def point(self, key: RunKey, point: CurvePoint) -> None:
        """A run's curve has a new point."""

    def run_finished(self, key: RunKey, result: RunResult) -> None:
        """A run ended and is stored."""

    def runs_skipped(self, study: str, n: int) -> None:
        """So many runs of a trial will not be made: its first was pruned, or hopeless."""

    def runs_added(self, study: str, n: int) -> None:
        """So many runs more than was said will be made, or fewer: a grid has grown, or does not grow after all."""

    def trial_finished(self, study: str, trial: int, value: float | None, best: float | None) -> None:
        """A trial was told to the sampler (None: it has no value); ``best`` is the study's best so far."""

    def message(self, text: str) -> None:
        """Something a person should know: a run lost and run again, an interrupt being honoured."""
