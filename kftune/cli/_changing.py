"""Which stored studies a command changes, and whether that is really wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from kftune.cli._target import find_target
from kftune.errors import StorageError, UnknownNameError, UsageError
from kftune.progress.output import say

if TYPE_CHECKING:
    from kftune.storage.repository import Repository, StudyRecord

__all__ = ["Changed", "ChangedStudy", "Yes", "agreed", "open_to_change"]

ChangedStudy: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="A study file or its name; or one study of it, NAME/PROBLEM/OPTIMIZER."),
]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True)
class Changed:
    """Stored studies of one study file, in an open database.

    Attributes:
        repository: open for writing.
        file_name: the study file's ``name``.
        studies: all of the file, or the one that was named.
    """

    repository: Repository
    file_name: str
    studies: Sequence[StudyRecord]

    @property
    def names(self) -> list[str]:
        """Full names of the studies."""
        return [record.study for record in self.studies]


@contextmanager
def open_to_change(study: str, storage: str | None) -> Iterator[Changed]:
    """The studies that an argument names, when nobody is running any in their database.

    Raises:
        UsageError: they are not stored, the argument names several files, or the database is in use.
    """
    from kftune.storage.repository import Repository
    from kftune.study.sessions.lock import sole_runner

    in_full = study if "/" in study and not study.endswith((".yaml", ".yml", ".db")) else None
    target = find_target(in_full.partition("/")[0] if in_full else study, storage)
    with Repository.open(target.storage, create=False) as repository:
        names = target.file_names(repository)
        if len(names) > 1:
            raise StorageError(f"{repository.name} holds several studies: name one of {', '.join(names)}")
        records = repository.studies(names[0])
        known = [record.study for record in records]
        if in_full is not None and in_full not in known:
            raise UnknownNameError("study", in_full, known)
        with sole_runner(repository.path):  # before anything is asked
            pass
        if repository.path is None:
            say(f"{repository.name}: see to it that no kftune runs studies in this database now", whole=True)
        yield Changed(repository, names[0], [r for r in records if in_full is None or r.study == in_full])


def agreed(question: str, *, yes: bool) -> bool:
    """Whether a person says yes to a question, which is asked on the standard error.

    Raises:
        UsageError: there is nobody to answer.
    """
    if yes:
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        print(file=sys.stderr)
        raise UsageError("nobody answered, so nothing was changed; --yes does not ask")
    if answer.strip().lower() in ("y", "yes"):
        return True
    say("nothing was changed")
    return False
