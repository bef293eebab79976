"""``kftune dashboard``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kftune.cli._options import AsJson, Storage, StoredStudy
from kftune.cli._output import print_json, say
from kftune.cli._target import find_target, open_to_read

__all__ = ["dashboard"]


def dashboard(
    study: StoredStudy = None,
    *,
    storage: Storage = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: dashboards/<name of the study>.html.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page with figures and tables."""
    from kftune.dashboard.page import write_page

    target = find_target(study, storage)
    with open_to_read(target.storage) as repository:
        names = target.file_names(repository)
        path = out if out is not None else Path("dashboards") / f"{names[0]}.html"
        written = write_page(repository, file_names=names, out=path)
    if as_json:
        print_json({"path": str(written), "studies": names})
    else:
        say(f"wrote {written}", whole=True)
