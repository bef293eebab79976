"""The stored results that a command's arguments name, of one database or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from kftune.cli._target import find_target, open_to_read

if TYPE_CHECKING:
    from kftune.analysis.stored.results import FileResults

__all__ = ["StoredStudies", "load_files", "named_files"]

StoredStudies: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[STUDIES]...",
        help="Study files, their names, or database files. Default: the only database (*.db) in this directory.",
    ),
]


def load_files(studies: Sequence[str] | None, storage: str | None, *, curves: bool = True) -> list[FileResults]:
    """Everything stored about some study files, each once, in the order they are named.

    Raises:
        UsageError: as :func:`kftune.cli._target.find_target` and :meth:`kftune.cli._target.Target.file_names`.
    """
    from kftune.analysis.stored.results import load_results

    files = []
    for url, names in named_files(studies, storage).items():
        with open_to_read(url) as repository:
            files += load_results(repository, names, curves=curves)
    return files


def named_files(studies: Sequence[str] | None, storage: str | None) -> dict[str, list[str]]:
    """Database URL → names of the study files that are meant in it, each once, in the order they are named.

    Raises:
        UsageError: as :func:`kftune.cli._target.find_target` and :meth:`kftune.cli._target.Target.file_names`.
    """
    named: Sequence[str | None] = studies or [None]
    wanted: dict[str, dict[str, None]] = {}
    for target in [find_target(study, storage) for study in named]:
        with open_to_read(target.storage) as repository:
            wanted.setdefault(target.storage, {}).update(dict.fromkeys(target.file_names(repository)))
    return {url: list(names) for url, names in wanted.items()}
