"""The table of a sweep made elsewhere, to be stored beside kftune's own studies."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from kftune.errors import ConfigError, UnknownNameError, UsageError, suggestion
from kftune.objective import OBJECTIVES, Objective
from kftune.results import Outcome
from kftune.space import Value
from kftune.storage.importing._boxes import box
from kftune.storage.importing.studies import ImportedRun, ImportedStudy, ImportedTrial, space_of
from kftune.storage.records import Purpose

__all__ = ["read_csv_sweep"]

_PREFIXES = ("param.", "params_", "config/", "config.")
"""Of hyperparameters' columns: kftune's own export, Optuna's trials_dataframe, Ray Tune, Weights & Biases."""

_VALUE_COLUMNS = ("value", "loss", "test_loss", "val_loss", "train_loss", "test_error")
_KNOWN = {
    "problem": ("problem",),
    "optimizer": ("optimizer",),
    "trial": ("trial", "number"),
    "repeat": ("repeat",),
    "seed": ("seed",),
    "outcome": ("outcome", "state", "status"),
    "train_seconds": ("train_seconds", "seconds"),
    "updates": ("updates", "steps"),
    "purpose": ("purpose",),
    "budget_factor": ("budget_factor",),
    "superseded": ("superseded",),
}
_OWN = ("file_name", "study", "objective")
"""Columns of kftune's own export that have a meaning beside one another only."""

_OUTCOMES = {
    "complete": Outcome.COMPLETED,
    "finished": Outcome.COMPLETED,
    "success": Outcome.COMPLETED,
    "terminated": Outcome.COMPLETED,
    "nan": Outcome.DIVERGED,
    "oom": Outcome.OUT_OF_MEMORY,
    "timeout": Outcome.TIMED_OUT,
    "fail": Outcome.CRASHED,
    "failed": Outcome.CRASHED,
    "error": Outcome.CRASHED,
}


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Which column is what."""

    value: str
    params: Mapping[str, str]
    known: Mapping[str, str]


def read_csv_sweep(
    path: Path,
    *,
    value: str | None = None,
    params: Sequence[str] | None = None,
    problem: str = "imported",
    optimizer: str = "imported",
    file_name: str | None = None,
) -> list[ImportedStudy]:
    """One row per run: hyperparameters, the value reached, and whatever else is known of it.

    ``problem``, ``optimizer``, ``trial`` (or ``number``), ``repeat``, ``seed``, ``outcome`` (or ``state``),
    ``train_seconds`` and ``updates`` are columns with a meaning. Rows of equal hyperparameters are runs of one trial,
    unless there is a column that numbers trials. The search box is what was tried; see :func:`._boxes.box`. A run
    without a value crashed; one of NaN or infinity diverged. In a table that kftune exported, the objective is known,
    and only the rows of one study file are read.

    Args:
        path: the CSV file.
        value: the column that was minimised; by default the first of ``value``, ``loss``, ``test_loss``, ….
        params: the hyperparameters' columns; by default those that begin with ``param.``, ``params_``, ``config/`` or
            ``config.`` if there are any, else all that are nothing else.
        problem: label where the table has no such column.
        optimizer: likewise.
        file_name: of a table that kftune exported from several study files: which.

    Returns:
        One per (problem, optimizer), in the order of the rows.

    Raises:
        UsageError: the file cannot be read, has no rows or no such column, a cell is not what it should be, or there
            are several study files and none is named.
        UnknownNameError: there is no such study file in it.
    """
    all_rows = _rows(path)
    is_own = _is_own(all_rows)
    rows = _of_file(path, all_rows, file_name, is_own=is_own)
    columns = _columns(path, list(all_rows[0]), value, params, own=_OWN if is_own else ())
    by_study: dict[tuple[str, str], list[tuple[int, dict[str, str]]]] = {}
    for line, row in rows:
        if _cell(row, columns, "superseded").lower() == "true":
            continue
        labels = (_cell(row, columns, "problem") or problem, _cell(row, columns, "optimizer") or optimizer)
        by_study.setdefault(labels, []).append((line, row))
    if not by_study:
        raise UsageError(f"{path} has no rows to import")
    return [
        _study(path, labels, found, columns, objective=_objective(path, found) if is_own else None)
        for labels, found in by_study.items()
    ]


def _is_own(rows: Sequence[Mapping[str, str]]) -> bool:
    """Whether kftune exported it: a study's name begins with its study file's."""
    return {"file_name", "study"} <= rows[0].keys() and all(
        row["file_name"] and row["study"].startswith(f"{row['file_name']}/") for row in rows
    )


def _of_file(
    path: Path, rows: Sequence[dict[str, str]], file_name: str | None, *, is_own: bool
) -> list[tuple[int, dict[str, str]]]:
    """The rows of one study file, with their lines."""
    numbered = list(enumerate(rows, start=2))
    if not is_own:
        if file_name is not None:
            raise UsageError(f"{path} is no table of kftune's runs, so it has no study file {file_name!r}")
        return numbered
    if "point" in rows[0]:
        raise UsageError(f"{path} has a row for every evaluation; export --as csv --out DIRECTORY writes one of runs")
    there = list(dict.fromkeys(row["file_name"] for row in rows))
    if file_name is None and len(there) > 1:
        choices = " or ".join(f"{path}#{name}" for name in there)
        raise UsageError(f"{path} holds runs of {len(there)} study files: import them apart, {choices}")
    if file_name is not None and file_name not in there:
        raise UnknownNameError("study file", file_name, there)
    return [(line, row) for line, row in numbered if row["file_name"] == (file_name or there[0])]


def _objective(path: Path, rows: Sequence[tuple[int, Mapping[str, str]]]) -> Objective | None:
    """What a study's values are, if its export says so."""
    for line, row in rows:
        for objective in OBJECTIVES:
            if row.get("objective") == objective:
                return objective
        if row.get("objective"):
            raise ConfigError(
                f"must be one of {', '.join(OBJECTIVES)}, got {row['objective']!r}",
                source=f"{path}, line {line}",
                path="objective",
            )
    return None


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            names = [name.strip() for name in reader.fieldnames or () if name.strip()]
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ConfigError(f"the column {twice!r} stands twice; rename or remove one", source=f"{path}, line 1")
    if not rows:
        raise UsageError(f"{path} has no rows to import")
    if "" in rows[0]:
        raise ConfigError("has more cells than the header has columns", source=f"{path}, line 2")
    return rows


def _columns(
    path: Path, names: Sequence[str], value: str | None, params: Sequence[str] | None, *, own: Sequence[str]
) -> _Columns:
    for asked in (*([value] if value else []), *(params or ())):
        if asked not in names:
            raise UsageError(f"{path} has no column {asked!r}{suggestion(asked, names)}")
    found = value or next((name for name in _VALUE_COLUMNS if name in names), None)
    if found is None:
        raise UsageError(f"{path}: name the column that was minimised with --value; there are {', '.join(names)}")
    known = {
        meaning: name
        for meaning, candidates in _KNOWN.items()
        if (name := next((c for c in candidates if c in names and c != found), None)) is not None
    }
    if params is not None:
        return _Columns(value=found, params={name: name for name in params}, known=known)
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in names)), None)
    if prefix is not None:
        prefixed = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
        return _Columns(value=found, params=prefixed, known=known)
    taken = {found, *own, *known.values()}
    return _Columns(value=found, params={name: name for name in names if name not in taken}, known=known)


def _cell(row: Mapping[str, str], columns: _Columns, meaning: str) -> str:
    name = columns.known.get(meaning)
    return row[name].strip() if name is not None else ""


def _study(
    path: Path,
    labels: tuple[str, str],
    rows: Sequence[tuple[int, Mapping[str, str]]],
    columns: _Columns,
    *,
    objective: Objective | None,
) -> ImportedStudy:
    numbered = "trial" in columns.known
    trials: dict[object, tuple[dict[str, Value], list[ImportedRun]]] = {}
    for line, row in rows:
        values = {name: _scalar(row[column]) for name, column in columns.params.items() if row[column].strip()}
        key = _cell(row, columns, "trial") if numbered else tuple(sorted((n, repr(v)) for n, v in values.items()))
        params, runs = trials.setdefault(key, (values, []))
        if params != values:
            where = f"{path}, line {line}"
            raise ConfigError(f"trial {key} has other hyperparameters than in an earlier line", source=where)
        runs.append(_run(path, line, row, columns, earlier=runs))
    distributions, fixed = box([params for params, _ in trials.values()])
    return ImportedStudy(
        problem=labels[0],
        optimizer=labels[1],
        space=space_of(distributions, fixed),
        trials=tuple(
            ImportedTrial(params={n: v for n, v in params.items() if n not in fixed}, runs=tuple(runs))
            for params, runs in trials.values()
        ),
        objective=objective,
    )


def _run(
    path: Path, line: int, row: Mapping[str, str], columns: _Columns, *, earlier: Sequence[ImportedRun]
) -> ImportedRun:
    def number(column: str | None) -> float | None:
        text = "" if column is None else row[column].strip()
        try:
            return float(text) if text else None
        except ValueError:
            raise ConfigError(f"must be a number, got {text!r}", source=f"{path}, line {line}", path=column) from None

    value = number(columns.value)
    purpose = _purpose(path, line, _cell(row, columns, "purpose"))
    factor = number(columns.known.get("budget_factor"))
    factor = 1.0 if factor is None else factor
    given = number(columns.known.get("repeat"))
    alike = [run.repeat for run in earlier if (run.purpose, run.budget_factor) == (purpose, factor)]
    repeat = len(alike) if given is None else int(given)
    if repeat in alike:
        raise ConfigError(f"repeat {repeat} of this trial stands twice", source=f"{path}, line {line}")
    seed = number(columns.known.get("seed"))
    return ImportedRun(
        repeat=repeat,
        seed=repeat if seed is None else int(seed),
        outcome=_outcome(path, line, _cell(row, columns, "outcome"), value),
        value=value if value is not None and math.isfinite(value) else None,
        train_seconds=number(columns.known.get("train_seconds")) or 0.0,
        updates=int(number(columns.known.get("updates")) or 0),
        purpose=purpose,
        budget_factor=factor,
    )


def _purpose(path: Path, line: int, text: str) -> Purpose:
    for purpose in get_args(Purpose):
        if text in ("", purpose):
            found: Purpose = purpose
            return found
    raise ConfigError(f"must be one of {', '.join(get_args(Purpose))}, got {text!r}", source=f"{path}, line {line}")


def _outcome(path: Path, line: int, text: str, value: float | None) -> Outcome:
    if text:
        word = text.lower()
        if word in _OUTCOMES or word in list(Outcome):
            return _OUTCOMES.get(word) or Outcome(word)
        allowed = [outcome.value for outcome in Outcome]
        raise ConfigError(f"unknown outcome {text!r}{suggestion(word, allowed)}", source=f"{path}, line {line}")
    if value is None:
        return Outcome.CRASHED
    return Outcome.COMPLETED if math.isfinite(value) else Outcome.DIVERGED


def _scalar(text: str) -> Value:
    """A cell as the value it reads as."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else text
    return text
