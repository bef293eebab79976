"""``kftune delete``."""

from __future__ import annotations

import typer

from kftune.cli._changing import ChangedStudy, Yes, agreed, open_to_change
from kftune.cli._options import AsJson, Storage
from kftune.progress.output import counted, print_json, say

__all__ = ["delete"]


def delete(study: ChangedStudy, *, storage: Storage = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a study with all that is stored of it; the rest of its database, and its study file, stay."""
    from kftune.study.sessions.changing import delete_studies

    with open_to_change(study, storage) as changed:
        names, database = changed.names, changed.repository.name
        runs = [
            run
            for purpose in ("search", "confirm")
            for superseded in (False, True)
            for run in changed.repository.runs(curves=False, purpose=purpose, superseded=superseded)
            if run.study in names
        ]
        what = f"{counted(len(names), 'study', 'studies')} with {counted(len(runs), 'run')} in {database}"
        if not agreed(f"{', '.join(names)}\ndelete {what}, for good?", yes=yes):
            raise typer.Exit(1)
        delete_studies(changed.repository, names)
    if as_json:
        print_json({"database": database, "deleted": names, "n_runs": len(runs)})
        return
    say(f"deleted {what}", whole=True)
