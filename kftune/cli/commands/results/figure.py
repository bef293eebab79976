"""``kftune figure``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kftune.cli._options import AsJson, Storage
from kftune.cli._results import StoredStudies, named_files
from kftune.cli.rendering.page_parts import figure_entries
from kftune.errors import UsageError
from kftune.progress.output import print_json, print_table, say

__all__ = ["figure"]


def figure(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which figure; see --list.")] = None,
    studies: StoredStudies = None,
    *,
    storage: Storage = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A file ending with .png, .svg, .pdf or .html.")
    ] = None,
    problem: Annotated[str | None, typer.Option("--problem", help="Of several problems, which.")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="Of several optimizers, which.")] = None,
    of: Annotated[
        str | None, typer.Option("--of", help="Which hyperparameter, pair of them (lr,damping) or reading.")
    ] = None,
    at: Annotated[
        float | None,
        typer.Option(
            "--at", metavar="SECONDS", help="As it was after so much of the budget, for figures that depend on it."
        ),
    ] = None,
    width: Annotated[int | None, typer.Option("--width", min=100, max=8000, help="In pixels.")] = None,
    height: Annotated[int | None, typer.Option("--height", min=100, max=8000, help="In pixels.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the figures.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw one figure of the page into a file, for a paper."""
    from kftune.dashboard.export import make_request, write_figure
    from kftune.dashboard.figures import FIGURES
    from kftune.dashboard.page import read_sources

    if list_:
        _list(as_json=as_json)
        return
    if name is None or out is None:
        raise UsageError("kftune figure needs a NAME and --out FILE; `kftune figure --list` shows the names")
    FIGURES.get(name)
    files, database = read_sources(named_files(studies, storage))
    if len(files) > 1:
        raise UsageError(f"a figure is of one study file: name one of {', '.join(file.name for file in files)}")
    (file,) = files
    request = make_request(name, file, problem=problem, optimizer=optimizer, of=of, at=at)
    written = write_figure(name, request, out=out, database=database, width=width, height=height)
    if as_json:
        print_json({"path": str(written), "figure": name, "study": file.name})
    else:
        say(f"wrote {written}", whole=True)


def _list(*, as_json: bool) -> None:
    entries = figure_entries()
    if as_json:
        print_json(entries)
        return
    about = {"dimension": "--of", "pair": "--optimizer --of", "reading": "--of", "optimizer": "--optimizer"}
    rows = [
        (entry["name"], entry["shows"], "may have --at" if entry["at"] else about.get(entry["about"], ""))
        for entry in entries
    ]
    print_table(("figure", "shows", "options"), rows, wrap=("shows",))
