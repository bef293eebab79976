"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

__all__ = ["AsJson", "DataDir", "Devices", "Overrides", "Storage", "StoredStudy", "StudyFile", "Workers"]

StudyFile: TypeAlias = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
StoredStudy: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="[STUDY]",
        help="A study file, its name, or a database file. Default: the only database (*.db) in this directory.",
    ),
]
Storage: TypeAlias = Annotated[
    str | None, typer.Option("--storage", metavar="URL|FILE", help="The database, instead of the study file's.")
]
Overrides: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Change a key of the study file, e.g. trials=50 or optimizers.kfac.fixed.lr=0.1. May be repeated.",
    ),
]
Devices: TypeAlias = Annotated[
    str | None,
    typer.Option("--devices", metavar="LIST", help="One slot per item, e.g. cuda:0,cuda:1 or cpu; or auto."),
]
Workers: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", min=1, max=1024, help="Runs at a time on the CPU, its cores shared out among them."
    ),
]


def _read_from(context: typer.Context, directory: Path | None) -> Path | None:
    """Until the command ends, that is where all data are read from: a study file's own problems too, to be counted."""
    if directory is not None and not context.resilient_parsing:
        from kftune.problems import data_read_from  # imports torch

        context.with_resource(data_read_from(directory))
    return directory


DataDir: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", callback=_read_from, help="Where datasets are. Default: KFTUNE_DATA, else the user's cache."
    ),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
