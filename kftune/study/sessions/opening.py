"""How every session begins: the data are there, the database is its own, its studies and itself are noted down."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kftune._targets import importable_from
from kftune._version import __version__
from kftune.problems import get_dataset, locate, problem_with
from kftune.storage.repository import Repository, SessionRecord, StudyRecord
from kftune.study.config import StudyConfig, make_plans, without_password
from kftune.study.sessions.lock import sole_runner

__all__ = ["preflight", "session_record", "sole_writer", "study_records"]

_PACKAGES = ("torch", "optuna", "GPyOpt", "GPy", "numpy", "scipy")


def preflight(config: StudyConfig, *, data_dir: Path) -> None:
    """Check that every problem's data are there, before anything is written.

    Raises:
        DataMissingError: a problem's files are missing.
    """
    with importable_from(config.module_dir):
        for plan in make_plans(config):
            entry = problem_with(plan.problem_name, plan.problem_args)
            if entry.dataset is not None:
                locate(get_dataset(entry.dataset), data_dir)


@contextmanager
def sole_writer(repository: Repository) -> Iterator[None]:
    """Be the only runner of a database for the time of the ``with`` block.

    Raises:
        StudyLockedError: another process is running studies in it.
        StorageError: the database cannot be written any more (a full disk, say); what is stored is safe.
    """
    with repository.optuna_errors(), sole_runner(repository.path):
        yield


def study_records(config: StudyConfig, n_trials: Mapping[str, int]) -> list[StudyRecord]:
    """What is stored of a study file's studies, given how many trials each is to have."""
    return [
        StudyRecord(
            study=plan.study,
            file_name=config.name,
            problem=plan.problem,
            optimizer=plan.optimizer,
            identity=plan.identity(),
            config=config.to_dict(),
            space=plan.space.to_dict(),
            n_trials=n_trials[plan.study],
            n_train=plan.n_train,
        )
        for plan in make_plans(config)
    ]


def session_record(config: StudyConfig, *, devices: Sequence[str], ledger: Mapping[str, float]) -> SessionRecord:
    """What is stored of a session that begins now.

    Args:
        config: the study file.
        devices: one entry per slot.
        ledger: where its seconds went so far.
    """
    versions = {"kftune": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions |= config.code_versions()
    return SessionRecord(
        id=None,
        file_name=config.name,
        started_at=datetime.now(UTC),
        ended_at=None,
        host=socket.gethostname(),
        devices=list(devices),
        versions=versions,
        command=shlex.join([Path(sys.argv[0]).name, *map(without_password, sys.argv[1:])]),
        ledger=ledger,
    )
