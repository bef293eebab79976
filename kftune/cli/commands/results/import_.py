"""``kftune import``."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kftune.cli._options import AsJson
from kftune.cli._target import given_storage
from kftune.errors import UsageError
from kftune.progress.output import counted, print_json, print_table, say

if TYPE_CHECKING:
    from kftune.storage.importing.studies import ImportedStudy

__all__ = ["import_"]


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="An Optuna study (DATABASE#STUDY, a file or URL), or a CSV file with one row per run (FILE.csv; "
            "FILE.csv#NAME: of kftune's own export only the study file of that name).",
        ),
    ],
    *,
    storage: Annotated[
        str | None,
        typer.Option("--storage", metavar="URL|FILE", help="The kftune database to store it in; made if need be."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Its name in the place of a study file's. Default: the source's.")
    ] = None,
    problem: Annotated[str, typer.Option("--problem", help="Label, where the source has none.")] = "imported",
    optimizer: Annotated[str, typer.Option("--optimizer", help="Label, where the source has none.")] = "imported",
    objective: Annotated[
        Literal["test_loss", "train_loss", "test_error"] | None,
        typer.Option("--objective", help="What the values are. Default: what the source says, else test_loss."),
    ] = None,
    value: Annotated[
        str | None, typer.Option("--value", metavar="COLUMN", help="CSV: the column that was minimised.")
    ] = None,
    params: Annotated[
        str | None, typer.Option("--params", metavar="COLUMN,...", help="CSV: the hyperparameters' columns.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Store results made elsewhere (an Optuna study, the CSV of a sweep) beside kftune's own."""
    from kftune.storage.importing.studies import common_objective, store_imported
    from kftune.storage.repository import Repository
    from kftune.study.config import without_password

    url = given_storage(storage)
    if url is None:
        raise UsageError("--storage names the database to store it in, e.g. --storage results.db")
    place, _, part = source.rpartition("#")
    if (place or source).lower().endswith(".csv"):
        path = Path(place or source)
        found = _csv_sweep(
            path, value=value, params=params, problem=problem, optimizer=optimizer, file_name=part if place else None
        )
        default = part if place else path.stem
    elif place:
        if value is not None or params is not None:
            raise UsageError("--value and --params are for CSV files")
        found = [_optuna_study(place, part, problem=problem, optimizer=optimizer, objective=objective or "test_loss")]
        default = part
    else:
        raise UsageError(f"{source!r} is neither DATABASE#STUDY of an Optuna study nor a .csv file")
    _check_labels(found)
    file_name = _as_name(default) if name is None else _checked(name, "--name")
    with Repository.open(url) as repository:
        stored = store_imported(
            repository,
            found,
            file_name=file_name,
            objective=common_objective(found, objective),
            source=without_password(source),
            command=shlex.join(["kftune", *map(without_password, sys.argv[1:])]),
        )
        database = repository.name
    _report(found, stored, database, file_name, as_json=as_json)


def _optuna_study(
    database: str,
    study: str,
    *,
    problem: str,
    optimizer: str,
    objective: Literal["test_loss", "train_loss", "test_error"],
) -> ImportedStudy:
    from kftune.storage.importing.optuna_study import read_optuna_study
    from kftune.study.config import storage_url

    try:
        url = storage_url(database)
    except ValueError as error:
        raise UsageError(f"{database}: {error}") from None
    return read_optuna_study(url, study, problem=problem, optimizer=optimizer, objective=objective)


def _csv_sweep(
    path: Path, *, value: str | None, params: str | None, problem: str, optimizer: str, file_name: str | None
) -> list[ImportedStudy]:
    from kftune.storage.importing.csv_sweep import read_csv_sweep

    columns = None if params is None else [column.strip() for column in params.split(",")]
    return read_csv_sweep(path, value=value, params=columns, problem=problem, optimizer=optimizer, file_name=file_name)


def _as_name(text: str) -> str:
    """Text as a study file could be named."""
    return re.sub(r"[^\w.\- ]", "-", text).strip(" .-_")[:100] or "imported"


def _checked(text: str, what: str) -> str:
    from kftune.study.config import check_name

    try:
        check_name(text)
    except ValueError as error:
        raise UsageError(f"{what}: {error}") from None
    return text


def _check_labels(found: list[ImportedStudy]) -> None:
    """A slash separates the parts of a study's name."""
    for study in found:
        _checked(study.problem, "problem")
        _checked(study.optimizer, "optimizer")


def _report(found: list[ImportedStudy], stored: list[str], place: str, file_name: str, *, as_json: bool) -> None:
    rows = [
        {
            "study": study_name,
            "n_trials": len(study.trials),
            "n_runs": sum(len(trial.runs) for trial in study.trials),
            "searched": list(study.space.dimensions),
            "fixed": dict(study.space.fixed),
        }
        for study, study_name in zip(found, stored, strict=True)
    ]
    if as_json:
        print_json({"database": place, "name": file_name, "studies": rows})
        return
    print_table(
        ("study", "trials", "runs", "searched", "fixed"),
        [
            (
                str(row["study"]),
                str(row["n_trials"]),
                str(row["n_runs"]),
                ", ".join(study.space.dimensions) or "–",
                ", ".join(f"{key}={value}" for key, value in study.space.fixed.items()) or "–",
            )
            for row, study in zip(rows, found, strict=True)
        ],
        right=("trials", "runs"),
        wrap=("study", "searched", "fixed"),
    )
    say(f"stored {counted(len(found), 'study', 'studies')} as {file_name} in {place}", whole=True)
    say(f"See them with: kftune compare {shlex.join([file_name, '--storage', place])}", whole=True)
