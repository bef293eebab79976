"""``kftune data``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kftune.cli._options import AsJson, DataDir
from kftune.progress.output import print_json, print_table, say

__all__ = ["app"]

app = typer.Typer(help="Datasets that are not part of an installed package.", no_args_is_help=True)


@app.command("fetch")
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="DATASET...", help="See `kftune data list`.")],
    data_dir: DataDir = None,
) -> None:
    """Download datasets and check them."""
    from kftune.errors import UnknownNameError
    from kftune.problems import DATASETS, default_data_dir
    from kftune.problems import fetch as fetch_dataset

    for name in names:
        if name not in DATASETS:
            raise UnknownNameError("dataset", name, DATASETS)
    directory = data_dir if data_dir is not None else default_data_dir()
    for name in names:
        fetched = fetch_dataset(name, directory, progress=sys.stderr.isatty())
        what = f"fetched {len(fetched)} files into" if fetched else "all files were in"
        say(f"{name}: {what} {directory / name}", whole=True)


@app.command("list")
def list_(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show the datasets, and which are there."""
    from kftune.problems import default_data_dir, list_datasets

    directory = data_dir if data_dir is not None else default_data_dir()
    found = list_datasets(directory)
    if as_json:
        print_json(
            {
                "data_dir": str(directory),
                "datasets": [
                    {
                        "name": dataset.name,
                        "summary": dataset.summary,
                        "source": dataset.source,
                        "present": dataset.present,
                        "missing": dataset.missing,
                        "size_bytes": dataset.size_bytes,
                    }
                    for dataset in found
                ],
            }
        )
        return
    say(f"data directory: {directory}", whole=True)
    rows = [(d.name, "yes" if d.present else f"{len(d.missing)} files missing", d.summary, d.source) for d in found]
    print_table(("dataset", "there", "what", "source"), rows, wrap=("there", "what", "source"))
