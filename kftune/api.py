"""Studies from Python, mirroring the study file and the commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kftune.errors import UnknownNameError, UsageError, UserCodeError

if TYPE_CHECKING:
    from kftune.analysis.stored.results import FileResults
    from kftune.storage.repository import Repository
    from kftune.study.config import StudyConfig
    from kftune.study.sessions.session import RunSummary

__all__ = ["Results", "Study", "run_study"]


def run_study(
    file: str | Path,
    *,
    overrides: Sequence[str] = (),
    devices: str | None = None,
    workers: int | None = None,
    data_dir: Path | None = None,
    progress: bool = True,
    retry_crashed: bool = False,
) -> Results:
    """Run a study file, or go on with it where it was left: ``kftune run`` as a function.

    Args:
        file: the study file.
        overrides: ``key.path=value`` each, as ``--set`` takes them.
        devices: one slot per item, e.g. ``"cuda:0,cuda:1"``, in place of the file's.
        workers: so many runs at a time on the CPU.
        data_dir: where datasets are; by default ``KFTUNE_DATA``, else the user's cache.
        progress: whether to show it.
        retry_crashed: make runs again that have crashed, once the code is mended.

    Raises:
        ConfigError: the file is wrong; all that is, a line each.
        UsageError: data or a device are missing, the database cannot be used, a stored study differs.
        UserCodeError: code that the file names failed several times in the same way.
        KeyboardInterrupt: passed on; every finished run is stored.
    """
    study = Study(file, overrides=overrides, data_dir=data_dir)
    return study.run(devices=devices, workers=workers, progress=progress, retry_crashed=retry_crashed)


class Study:
    """A study file, or the same keys as arguments: ``Study(name="mine", problems=["digits_mlp"], …)``.

    Among ``problems`` and ``optimizers`` may stand functions and classes of an importable module in place of their
    ``target``.

    Args:
        file: the study file; then no keys are given.
        overrides: ``key.path=value`` each, applied to either.
        data_dir: where datasets are, those of own problems too; by default ``KFTUNE_DATA``, else the user's cache.
        keys: of a study file.

    Raises:
        ConfigError: something is wrong; all that is, a line each.
        UserCodeError: code that is named failed.
    """

    def __init__(
        self,
        file: str | Path | None = None,
        *,
        overrides: Sequence[str] = (),
        data_dir: Path | None = None,
        **keys: Any,
    ) -> None:
        from kftune.problems import data_read_from

        self._data_dir = data_dir
        with data_read_from(data_dir):
            self.config: StudyConfig = self._read(file, overrides, keys)

    @staticmethod
    def _read(file: str | Path | None, overrides: Sequence[str], keys: dict[str, Any]) -> StudyConfig:
        from kftune.study.config import config_from_dict, load_config

        if (file is None) == (not keys):
            raise UsageError("Study takes either a study file or its keys")
        if file is not None:
            return load_config(file, overrides)
        directories: list[Path] = []
        for key in ("problems", "optimizers"):
            if isinstance(keys.get(key), list | tuple):
                keys[key] = [_named(item, directories) for item in keys[key]]
        directory = directories[0] if directories else Path()
        return config_from_dict(keys, "Study", overrides, directory=directory)

    def run(
        self,
        *,
        devices: str | None = None,
        workers: int | None = None,
        data_dir: Path | None = None,
        progress: bool = True,
        retry_crashed: bool = False,
    ) -> Results:
        """Bring every study to its number of trials; see :func:`run_study`. ``data_dir`` stands for the study's."""
        from kftune.study.sessions.search import check_sources, run_studies

        check_sources(self.config)
        train = partial(run_studies, retry_crashed=retry_crashed)
        return self._train(train, devices, workers, data_dir, progress)

    def confirm(
        self,
        *,
        top: int = 4,
        seeds: int = 5,
        budget_factors: Sequence[float] = (1.0,),
        devices: str | None = None,
        workers: int | None = None,
        data_dir: Path | None = None,
        progress: bool = True,
        retry_crashed: bool = False,
    ) -> Results:
        """Train the best configurations again on fresh seeds; see :mod:`kftune.study.sessions.confirm`."""
        from kftune.study.sessions.confirm import confirm_studies

        train = partial(
            confirm_studies, top=top, seeds=seeds, budget_factors=budget_factors, retry_crashed=retry_crashed
        )
        return self._train(train, devices, workers, data_dir, progress, repeats=seeds, create=False)

    def results(self) -> Results:
        """What is stored.

        Raises:
            UsageError: nothing is.
        """
        from kftune.analysis.stored.results import load_results
        from kftune.storage.repository import Repository

        with Repository.open(self.config.storage, read_only=True) as repository:
            return Results(load_results(repository, [self.config.name])[0])

    def widen(self, new: str) -> None:
        """Go on as ``new``, in wider boxes than those stored under this name, with the stored trials; ``run --widen``.

        Raises:
            UsageError: nothing is stored, or more than boxes has changed, or one is not wider; nothing is written.
        """
        from kftune.problems import data_read_from
        from kftune.storage.repository import Repository
        from kftune.study.config import check_name
        from kftune.study.sessions.widening import begin_wider

        try:
            check_name(new)
        except ValueError as error:
            raise UsageError(f"new: {error}") from None
        with data_read_from(self._data_dir), Repository.open(self.config.storage, create=False) as repository:
            self.config = begin_wider(self.config, new, repository=repository, say=lambda text: None)

    def enqueue(self, settings: Mapping[str, Any], *, optimizer: str | None = None, problem: str | None = None) -> None:
        """Have settings of your own tried next, before what the sampler proposes; as ``kftune enqueue``.

        Args:
            settings: hyperparameters with their values; the sampler chooses the others.
            optimizer: its label; needed where there are several.
            problem: its label; None for every problem.

        Raises:
            UsageError: there is no such hyperparameter, or a value is outside its box; nothing is stored.
        """
        from kftune.problems import data_read_from
        from kftune.storage.repository import Repository
        from kftune.study.sessions.given import enqueue_given, find_given

        with data_read_from(self._data_dir):
            given = find_given(self.config, settings, optimizer=optimizer, problem=problem)
            with Repository.open(self.config.storage) as repository:
                enqueue_given(self.config, given, repository=repository)

    def delete(self) -> None:
        """Delete everything stored of it, as ``kftune delete``; without asking.

        Raises:
            UsageError: nothing is stored, or another process is running studies in the database.
        """
        from kftune.study.sessions.changing import delete_studies

        with self._stored() as (repository, studies):
            delete_studies(repository, studies)

    def rename(self, new: str) -> None:
        """Give what is stored, and this study, another name, as ``kftune rename``.

        Raises:
            UsageError: nothing is stored, the name is taken or none, or another process is running studies there.
        """
        from kftune.study.config import check_name
        from kftune.study.sessions.changing import rename_studies

        try:
            check_name(new)
        except ValueError as error:
            raise UsageError(f"new: {error}") from None
        with self._stored() as (repository, _):
            rename_studies(repository, self.config.name, new)
        self.config = self.config.model_copy(update={"name": new})

    def drop(self, *trials: int, optimizer: str | None = None, problem: str | None = None) -> None:
        """Forget trials, as ``kftune drop``; new ones take their places when the study goes on.

        Args:
            trials: their numbers.
            optimizer: its label; needed where there are several.
            problem: likewise.

        Raises:
            UsageError: there is no such study or trial, or another process is running studies in the database.
        """
        from kftune.study.sessions.changing import drop_trials

        wanted = {1: problem, 2: optimizer}
        with self._stored() as (repository, studies):
            meant = [name for name in studies if all(part in (None, name.split("/")[i]) for i, part in wanted.items())]
            if len(meant) != 1:
                raise UsageError(f"drop: name one problem and optimizer; there are {', '.join(studies)}")
            drop_trials(repository, meant[0], trials)

    @contextmanager
    def _stored(self) -> Iterator[tuple[Repository, list[str]]]:
        """The database, open for writing, and the full names of the studies that are stored in it."""
        from kftune.storage.repository import Repository

        with Repository.open(self.config.storage, create=False) as repository:
            studies = [record.study for record in repository.studies(self.config.name)]
            if not studies:
                raise UnknownNameError("study", self.config.name, repository.file_names())
            yield repository, studies

    def _train(
        self,
        train: Callable[..., RunSummary],
        devices: str | None,
        workers: int | None,
        data_dir: Path | None,
        progress: bool,
        *,
        repeats: int | None = None,
        create: bool = True,
    ) -> Results:
        from kftune.problems import data_read_from, default_data_dir
        from kftune.progress.studies import make_reporter
        from kftune.storage.repository import Repository
        from kftune.study.config import resolve_devices
        from kftune.study.sessions.opening import preflight
        from kftune.study.sessions.session import Interrupt

        slots = resolve_devices(self.config, devices, workers=workers)
        chosen = data_dir if data_dir is not None else self._data_dir
        directory = chosen if chosen is not None else default_data_dir()
        go = partial(train, self.config, devices=slots, data_dir=directory)
        with data_read_from(directory):
            preflight(self.config, data_dir=directory)
            with Repository.open(self.config.storage, create=create) as repository:
                if progress:
                    with make_reporter(self.config, Interrupt(), repeats=repeats) as reporter:
                        summary = go(repository=repository, reporter=reporter)
                else:
                    summary = go(repository=repository)
        if summary.outcome == "crashed":
            raise UserCodeError(summary.message)
        return self.results()


class Results:
    """Everything stored about one study file, as data frames; nothing here changes the database.

    Attributes:
        file: the same as objects.
    """

    def __init__(self, file: FileResults) -> None:
        self.file = file

    def trials(self) -> pd.DataFrame:
        """One row per trial; see :func:`kftune.analysis.stored.frames.trials_frame`."""
        from kftune.analysis.stored.frames import trials_frame

        return trials_frame([self.file])

    def runs(self) -> pd.DataFrame:
        """One row per run of the search; see :func:`kftune.analysis.stored.frames.runs_frame`."""
        from kftune.analysis.stored.frames import runs_frame

        return runs_frame([self.file])

    def curves(self) -> pd.DataFrame:
        """One row per evaluation of a run; see :func:`kftune.analysis.stored.frames.points_frame`."""
        from kftune.analysis.stored.frames import points_frame

        return points_frame([self.file])

    def best(self, top: int = 1) -> pd.DataFrame:
        """The best configurations of every study: problem, optimizer, rank, value, spread, trial, params.

        Values are those the configurations were chosen by, and promise a little too much; see :meth:`Study.confirm`.
        """
        from kftune.analysis.tuning.best import best_configurations

        rows = [
            {
                "problem": study.problem,
                "optimizer": study.optimizer,
                "rank": best.rank,
                "value": best.value,
                "spread": best.spread,
                "trial": best.trial,
                "params": dict(best.params),
            }
            for study in best_configurations([self.file], top=top)
            for best in study.configurations
        ]
        return pd.DataFrame(rows, columns=["problem", "optimizer", "rank", "value", "spread", "trial", "params"])

    def winner(self) -> pd.DataFrame:
        """The best optimizer of every problem: problem, optimizer, trial, tuned, confirmed, params.

        By confirmed loss where one is, else by the search's; as ``kftune compare`` ranks and ``kftune export --winner``
        writes them. ``confirmed`` is None where it was not confirmed.
        """
        from kftune.analysis.ranking.chosen import winners

        columns = ["problem", "optimizer", "trial", "tuned", "confirmed", "params"]
        rows = [{name: found.to_dict()[name] for name in columns} for found in winners(self.file)]
        return pd.DataFrame(rows, columns=columns)


def _named(item: Any, directories: list[Path]) -> Any:
    """A function or class as its target; its module's directory is added to ``directories``.

    Raises:
        UsageError: a worker process could not import it.
    """
    if not (inspect.isroutine(item) or inspect.isclass(item)):
        return item
    if item.__module__ == "__main__" or "<" in item.__qualname__:
        raise UsageError(f"{item.__qualname__} must stand in a module of its own: every run imports it anew")
    source = inspect.getsourcefile(item)
    if source is not None and "." not in item.__module__:
        directories.append(Path(source).parent)
    return {"target": f"{item.__module__}:{item.__qualname__}"}
