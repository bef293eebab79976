"""``kftune dashboard``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kftune.cli._options import AsJson, Storage
from kftune.cli._results import StoredStudies, load_files, named_files
from kftune.progress.output import print_json, say

__all__ = ["dashboard"]


def dashboard(
    studies: StoredStudies = None,
    *,
    storage: Storage = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: dashboards/<name of the study>.html.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="DIR", help="Write the exact data there, too, as CSV files.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page with figures and tables."""
    from kftune.dashboard.page import write_page
    from kftune.dashboard.tables import write_tables

    sources = named_files(studies, storage)
    names = [name for of_database in sources.values() for name in of_database]
    path = out if out is not None else Path("dashboards") / f"{names[0]}.html"
    write_page(sources, out=path)
    written = [path, *([] if csv is None else write_tables(load_files(studies, storage), csv))]
    if as_json:
        print_json({"path": str(path), "studies": names, "csv": [str(table) for table in written[1:]]})
        return
    for each in written:
        say(f"wrote {each}", whole=True)
