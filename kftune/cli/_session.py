"""Running studies from the command line: checks first, then the runner under a signal handler, then the results."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from kftune.cli._output import counted, say
from kftune.cli._progress import ProgressReporter, make_reporter
from kftune.cli._tables import print_best

if TYPE_CHECKING:
    from kftune.storage.repository import Repository
    from kftune.study.config import StudyConfig
    from kftune.study.runner import Interrupt, RunSummary

__all__ = ["run_session"]

_EXIT_CRASHED = 1
_EXIT_INTERRUPTED = 130


def run_session(
    config: StudyConfig, *, devices: str | None, data_dir: Path | None, again: str, dry_run: bool = False
) -> int:
    """Bring a study file's studies to their ends; returns the exit code.

    Args:
        config: the study file.
        devices: what ``--devices`` said.
        data_dir: what ``--data-dir`` said.
        again: the command that goes on after an interrupt.
        dry_run: stop after the checks.

    Raises:
        UsageError: data or a device are missing, the database cannot be used, a stored study differs; nothing of the
            study is written then.
    """
    from kftune.problems import default_data_dir
    from kftune.storage.repository import Repository
    from kftune.study.config import resolve_devices
    from kftune.study.runner import Interrupt, preflight, run_studies

    slots = resolve_devices(config, devices)
    directory = data_dir if data_dir is not None else default_data_dir()
    preflight(config, data_dir=directory)
    if dry_run:
        say(f"devices: {', '.join(slots)}\nall checks passed; nothing was run or written")
        return 0
    with Repository.open(config.storage) as repository:
        interrupt = Interrupt()
        reporter = make_reporter(config, interrupt)
        try:
            with _signals(interrupt, reporter), reporter:
                summary = run_studies(
                    config,
                    repository=repository,
                    devices=slots,
                    data_dir=directory,
                    reporter=reporter,
                    interrupt=interrupt,
                )
        except KeyboardInterrupt:
            say(f"\nstopped; every finished run is stored. Go on with: {again}", whole=True)
            return _EXIT_INTERRUPTED
        return _conclude(config, repository, summary, again)


@contextmanager
def _signals(interrupt: Interrupt, reporter: ProgressReporter) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets the runs in progress finish, the second stops at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.request()
        reporter.interrupted()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _conclude(config: StudyConfig, repository: Repository, summary: RunSummary, again: str) -> int:
    """Say how the session ended and what may come next."""
    from kftune.analysis.best import best_configurations
    from kftune.analysis.results import load_results

    if summary.outcome == "crashed":
        print(summary.message, file=sys.stderr)
        say(f"\nstopped; every finished run is stored. Once the cause is mended, go on with: {again}", whole=True)
        return _EXIT_CRASHED
    if summary.outcome == "interrupted":
        say(
            f"\ninterrupted after {counted(summary.n_runs, 'run')}; every one is stored. Go on with: {again}",
            whole=True,
        )
        return _EXIT_INTERRUPTED
    if summary.outcome == "limited":
        say(f"\n{summary.message}; every run is stored. Once the limit is raised, go on with: {again}", whole=True)
        return 0
    if summary.outcome == "already_complete":
        say(f"{config.name} is complete already: every study has its {config.trials} trials; nothing to do")
    else:
        say()
        print_best(best_configurations(load_results(repository, [config.name]), top=4))
    where = shlex.join([config.name, "--storage", repository.name])
    say(f"\nSee more with: kftune dashboard {where}\n               kftune status {where}", whole=True)
    return 0
