"""``kftune drop``."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from kftune.cli._changing import ChangedStudy, Yes, agreed, open_to_change
from kftune.cli._options import AsJson, Storage
from kftune.errors import StorageError
from kftune.progress.output import counted, print_json, say

__all__ = ["drop"]


def drop(
    study: ChangedStudy,
    trials: Annotated[list[int], typer.Argument(metavar="TRIAL...", help="Numbers of trials, as best shows them.")],
    *,
    storage: Storage = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Forget trials of a study, with all their runs; new ones take their places when it goes on.

    The other trials keep their numbers. What takes a place is proposed from what is stored then; where the sampler
    draws at random, it draws from the trial's number, so that the same configuration is trained again.
    """
    from kftune.study.sessions.changing import drop_trials

    with open_to_change(study, storage) as changed:
        database = changed.repository.name
        if len(changed.studies) > 1:
            raise StorageError(f"{changed.file_name} has several studies: name one of {', '.join(changed.names)}")
        name, numbers = changed.names[0], sorted(set(trials))
        n_there = len(changed.repository.trials(name))
        if unknown := [number for number in numbers if not 0 <= number < n_there]:
            raise StorageError(f"{name} has no trial {unknown[0]}; it has {n_there}, from 0")
        what = f"{'trial' if len(numbers) == 1 else 'trials'} {', '.join(map(str, numbers))} of {name} in {database}"
        if not agreed(f"drop {what}, for good?", yes=yes):
            raise typer.Exit(1)
        drop_trials(changed.repository, name, numbers)
    if as_json:
        print_json({"database": database, "study": name, "dropped": numbers})
        return
    say(f"dropped {what}", whole=True)
    if "imported" in changed.studies[0].config:
        return
    again = shlex.join(["kftune", "resume", changed.file_name, "--storage", database])
    say(f"{counted(len(numbers), 'new trial takes its place', 'new trials take their places')}: {again}", whole=True)
