"""``kftune export``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kftune.cli._options import AsJson, Storage
from kftune.cli._target import find_target, open_to_read
from kftune.errors import UnknownNameError, UsageError
from kftune.progress.output import say

if TYPE_CHECKING:
    import pandas as pd

    from kftune.analysis.stored.results import FileResults

__all__ = ["export"]


def export(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY]",
            help="A study (file/problem/optimizer), a problem of a file (file/problem), a study file, its name, or a "
            "database file. "
            "Default: the only database (*.db) in this directory.",
        ),
    ] = None,
    *,
    as_: Annotated[
        Literal["yaml", "json", "python", "csv", "parquet"],
        typer.Option(
            "--as",
            help="Best configuration (yaml, json, python), or all runs and curves in long format (csv, parquet).",
        ),
    ] = "yaml",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A file; for csv and parquet also a directory, for runs and curves apart."),
    ] = None,
    winner: Annotated[
        bool,
        typer.Option(
            "--winner",
            help="Only the best optimizer of every problem, as compare ranks them; python is always that.",
        ),
    ] = False,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Write the best configuration ready to paste, or all runs and curves as tables."""
    if as_json and as_ in ("csv", "parquet"):
        raise UsageError(f"--as {as_} writes tables and --json the best configuration: give one of them")
    as_ = "json" if as_json else as_
    if as_ in ("csv", "parquet") and out is None:
        raise UsageError(f"--as {as_} needs --out: a file, or a directory for runs and curves apart")
    if winner and as_ in ("csv", "parquet"):
        raise UsageError(f"--as {as_} writes all runs, and --winner is one configuration: give one of them")
    files = _load(study, storage)
    if as_ in ("csv", "parquet") and out is not None:
        for path in _write_tables(files, out, as_):
            say(f"wrote {path}", whole=True)
        return
    _give(_text(files, as_, only_winners=winner or as_ == "python"), out)


def _load(study: str | None, storage: str | None) -> list[FileResults]:
    """The named studies; of one that is named in full, or of a problem, nothing else."""
    from dataclasses import replace

    from kftune.analysis.stored.results import load_results

    in_full = study if study is not None and "/" in study and not study.endswith((".yaml", ".yml", ".db")) else None
    target = find_target(in_full.partition("/")[0] if in_full else study, storage)
    with open_to_read(target.storage) as repository:
        files = load_results(repository, target.file_names(repository))
    if in_full is None:
        return files
    known = [found.record.study for file in files for found in file.studies]
    meant = [name for name in known if name == in_full or name.startswith(f"{in_full}/")]
    if not meant:
        raise UnknownNameError("study", in_full, known)
    return [replace(file, studies=tuple(s for s in file.studies if s.record.study in meant)) for file in files]


def _text(files: list[FileResults], as_: str, *, only_winners: bool) -> str:
    from kftune.analysis.ranking.chosen import chosen_configurations, winners
    from kftune.cli.rendering.snippets import as_python, as_yaml

    find = winners if only_winners else chosen_configurations
    chosen = [configuration for file in files for configuration in find(file)]
    if not chosen:
        raise UsageError("no trial has ended well yet, so there is no configuration to export")
    if as_ == "json":
        import json

        return json.dumps([configuration.to_dict() for configuration in chosen], indent=2, ensure_ascii=False) + "\n"
    if as_ == "yaml":
        return as_yaml(chosen)
    if len(chosen) > 1:
        names = ", ".join(configuration.study.rpartition("/")[0] for configuration in chosen)
        raise UsageError(f"--as python is for one problem's winner: name one of {names}")
    return as_python(chosen[0])


def _give(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
        return
    _write(out, lambda path: path.write_text(text, encoding="utf-8"))
    say(f"wrote {out}", whole=True)


def _write_tables(files: list[FileResults], out: Path, as_: str) -> list[Path]:
    """One file of evaluations and their runs, or a directory with ``runs`` and ``curves``; returns what was written."""
    from kftune.analysis.stored.exporting import long_points, long_runs

    if out.suffix == f".{as_}" and not out.is_dir():
        tables = {out: long_points(files)}
    elif out.suffix and not out.is_dir():
        raise UsageError(f"--out {out}: a file's name must end in .{as_}")
    else:
        tables = {out / f"runs.{as_}": long_runs(files), out / f"curves.{as_}": long_points(files)}
    for path, table in tables.items():
        _write(path, _writer(table, as_))
    return list(tables)


def _writer(table: pd.DataFrame, as_: str) -> Callable[[Path], object]:
    if as_ == "csv":
        return lambda path: table.to_csv(path, index=False)
    return lambda path: table.to_parquet(path, index=False)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write then rename: what is there is replaced as a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as error:
        if partial.exists():
            partial.unlink()
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None
