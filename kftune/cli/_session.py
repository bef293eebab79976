"""Running studies from the command line: checks first, then the runner under a signal handler, then the results."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from kftune.cli._target import find_target
from kftune.cli.rendering.tables import print_best
from kftune.errors import StorageError
from kftune.progress.output import counted, say
from kftune.progress.studies import ProgressReporter, make_reporter

if TYPE_CHECKING:
    from kftune.storage.repository import Repository
    from kftune.study.config import StudyConfig
    from kftune.study.sessions.session import Interrupt, RunSummary

__all__ = ["Sitting", "stored_config"]

_EXIT_CRASHED = 1
_EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Sitting:
    """One call of a command that trains.

    Attributes:
        config: the study file.
        devices: what ``--devices`` said.
        workers: what ``--workers`` said.
        data_dir: what ``--data-dir`` said.
        again: the command that goes on after an interrupt.
        file: the study file's path, for messages; None where it was read from its database.
    """

    config: StudyConfig
    devices: str | None
    workers: int | None
    data_dir: Path | None
    again: str = ""
    file: str | None = None

    def search(self, *, dry_run: bool = False) -> int:
        """Bring the studies to their ends; returns the exit code.

        Args:
            dry_run: stop after the checks.

        Raises:
            UsageError: data or a device are missing, the database cannot be used, a stored study differs; nothing of
                the study is written then.
        """
        from kftune.study.sessions.search import check_sources, run_studies

        if dry_run:
            slots, _ = self.check()
            self._check_stored()
            say(f"devices: {', '.join(slots)}\nall checks passed; nothing was run or written")
            return 0
        check_sources(self.config)
        each = f"every study has its {self.config.trials} trials"
        return self._train(
            run_studies,
            lambda repository: _print_best(self.config, repository),
            f"{self.config.name} is complete already: {each}; nothing to do",
        )

    def confirm(
        self, *, top: int, seeds: int, budget_factors: Sequence[float], show: Callable[[Repository], None]
    ) -> int:
        """Confirm the best configurations, then show what came of it; returns the exit code.

        Raises:
            UsageError: as :meth:`search`, or there is nothing to confirm.
        """
        from kftune.study.sessions.confirm import confirm_studies

        return self._train(
            partial(confirm_studies, top=top, seeds=seeds, budget_factors=budget_factors),
            show,
            f"{self.config.name} is confirmed already, at these seeds and budgets; kftune compare shows it",
            repeats=seeds,
        )

    def check(self) -> tuple[list[str], Path]:
        """The device of every slot, and where the data are.

        Raises:
            UsageError: data or a device are missing.
        """
        from kftune.problems import default_data_dir
        from kftune.study.config import resolve_devices
        from kftune.study.sessions.opening import preflight

        slots = resolve_devices(self.config, self.devices, workers=self.workers, file=self.file)
        directory = self.data_dir if self.data_dir is not None else default_data_dir()
        preflight(self.config, data_dir=directory)
        return slots, directory

    def _check_stored(self) -> None:
        """See that the database would take the studies, and that there is what they are to start from; only reads.

        Raises:
            UsageError: as :meth:`search`.
        """
        from kftune.storage.repository import Repository
        from kftune.study.config import make_plans
        from kftune.study.sessions.opening import study_records
        from kftune.study.sessions.warm_start import find_candidates

        plans = make_plans(self.config)
        if not Repository.is_made(self.config.storage):
            find_candidates(self.config, plans, None)
            return
        with Repository.open(self.config.storage, read_only=True) as repository:
            find_candidates(self.config, plans, repository)
            repository.check(study_records(self.config, {plan.study: self.config.trials for plan in plans}))

    def _train(
        self,
        train: Callable[..., RunSummary],
        show: Callable[[Repository], None],
        already: str,
        *,
        repeats: int | None = None,
    ) -> int:
        from kftune.storage.repository import Repository
        from kftune.study.sessions.session import Interrupt

        slots, directory = self.check()
        with Repository.open(self.config.storage) as repository:
            interrupt = Interrupt()
            reporter = make_reporter(self.config, interrupt, repeats=repeats)
            try:
                with _signals(interrupt, reporter), reporter:
                    summary = train(
                        self.config,
                        repository=repository,
                        devices=slots,
                        data_dir=directory,
                        reporter=reporter,
                        interrupt=interrupt,
                    )
            except KeyboardInterrupt:
                say(f"\nstopped; every finished run is stored. Go on with: {self.again}", whole=True)
                return _EXIT_INTERRUPTED
            code = _conclude(summary, self.again)
            if code is not None:
                return code
            if summary.outcome == "already_complete":
                say(already)
            else:
                say()
                show(repository)
            where = shlex.join([self.config.name, "--storage", repository.name])
        say(f"\nSee more with: kftune dashboard {where}\n               kftune status {where}", whole=True)
        return 0


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


def _conclude(summary: RunSummary, again: str) -> int | None:
    """Say how a session ended that did not come to its end; returns the exit code, None if it did."""
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
    return None


def _print_best(config: StudyConfig, repository: Repository) -> None:
    from kftune.analysis.stored.results import load_results
    from kftune.analysis.tuning.best import best_configurations

    print_best(best_configurations(load_results(repository, [config.name]), top=4))


def stored_config(name: str | None, storage: str | None, overrides: Sequence[str] = ()) -> StudyConfig:
    """The one study file that a command is about, as it was last run.

    Raises:
        UsageError: it is not stored, or several are and none is named.
    """
    from kftune.storage.repository import Repository
    from kftune.study.config import config_from_dict

    target = find_target(name, storage)
    with Repository.open(target.storage, create=False) as repository:  # brings an older database up to date
        names = target.file_names(repository)
        if len(names) > 1:
            raise StorageError(f"{repository.name} holds several studies: name one of {', '.join(names)}")
        stored = dict(repository.studies(names[0])[-1].config)
        source = f"{names[0]} in {repository.name}"
    if "imported" in stored:
        raise StorageError(f"{names[0]} was imported from {stored['imported']}; there is nothing to go on with")
    # The database may have been moved since; its password is not stored in it.
    return config_from_dict(stored | {"storage": target.storage}, source, overrides)
