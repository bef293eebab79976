"""What is done to stored studies between sessions: deleting and renaming them, dropping some of their trials."""

from __future__ import annotations

from collections.abc import Sequence

from kftune.storage.repository import Repository
from kftune.study.sessions.lock import sole_runner

__all__ = ["delete_studies", "drop_trials", "rename_studies"]


def delete_studies(repository: Repository, studies: Sequence[str]) -> None:
    """Delete studies with all that is stored of them, in Optuna's tables and kftune's.

    Args:
        repository: open for writing.
        studies: their full names, ``file/problem/optimizer``.

    Raises:
        StudyLockedError: another process is running studies in this database; nothing is deleted.
    """
    with sole_runner(repository.path):
        repository.delete(studies)


def rename_studies(repository: Repository, old: str, new: str) -> None:
    """Give all studies of a study file another name, which goes on as if it had always had it.

    Args:
        repository: open for writing.
        old: the study file's ``name``.
        new: likewise.

    Raises:
        StudyLockedError: another process is running studies in this database; nothing is renamed.
        StorageError: studies of the new name are stored already.
    """
    with sole_runner(repository.path):
        repository.rename(old, new)


def drop_trials(repository: Repository, study: str, numbers: Sequence[int]) -> None:
    """Forget trials of a study, with all their runs. When it goes on, each place is taken by a new trial.

    Others keep their numbers. The sampler proposes anew from what is stored then; what it draws at random is drawn from
    the trial's number, and is the same configuration again.

    Args:
        repository: open for writing.
        study: its full name.
        numbers: of the trials.

    Raises:
        StudyLockedError: another process is running studies in this database; nothing is dropped.
        StorageError: there is no such study or trial; nothing is dropped.
    """
    with sole_runner(repository.path):
        repository.drop(study, numbers)
