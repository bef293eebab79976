"""``kftune rename``."""

from __future__ import annotations

from typing import Annotated

import typer

from kftune.cli._changing import ChangedStudy, Yes, agreed, open_to_change
from kftune.cli._options import AsJson, Storage
from kftune.errors import UsageError
from kftune.progress.output import print_json, say

__all__ = ["rename"]


def rename(
    study: ChangedStudy,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The name it gets.")],
    *,
    storage: Storage = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give a study file's stored studies another name; the file's own `name` is yours to change."""
    from kftune.study.config import check_name
    from kftune.study.sessions.changing import rename_studies

    try:
        check_name(new)
    except ValueError as error:
        raise UsageError(f"NEW: {error}") from None
    with open_to_change(study, storage) as changed:
        old, database = changed.file_name, changed.repository.name
        if "/" in study and study in changed.names:
            raise UsageError(f"a whole study file gets another name: kftune rename {old} {new}")
        if not agreed(f"rename {old} to {new} in {database}?", yes=yes):
            raise typer.Exit(1)
        rename_studies(changed.repository, old, new)
        names = [record.study for record in changed.repository.studies(new)]
    if as_json:
        print_json({"database": database, "old": old, "new": new, "studies": names})
        return
    say(f"{old} is {new} in {database}; to go on with it from a study file, that must have name: {new}", whole=True)
