"""Stored results in long format, for other tools: one row per run, one row per evaluation.

Hyperparameters stand in columns of their own, ``param.lr``; a configuration without one has nothing there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from kftune.analysis.stored.frames import points_frame, runs_frame
from kftune.analysis.stored.results import FileResults

__all__ = ["PARAM_PREFIX", "long_points", "long_runs"]

PARAM_PREFIX = "param."
_KEY = ["study", "purpose", "budget_factor", "trial", "repeat", "attempt"]


def long_runs(files: Sequence[FileResults]) -> pd.DataFrame:
    """One row per run: search, confirming and superseded ones, told apart by ``purpose`` and ``superseded``.

    Args:
        files: with curves; without, ``value`` is NaN.
    """
    runs = runs_frame(files, every=True)
    objective = _objectives(files, runs)
    return pd.concat([runs.drop(columns="params"), objective, _param_columns(runs)], axis="columns")


def long_points(files: Sequence[FileResults]) -> pd.DataFrame:
    """One row per evaluation of the runs of :func:`long_runs`, with what its run is.

    A run without an evaluation has no row.
    """
    runs = runs_frame(files, every=True)
    params = _param_columns(runs)
    about = pd.concat(
        [runs[[*_KEY, "superseded", "seed", "outcome", "value"]], _objectives(files, runs), params], axis="columns"
    )
    points = points_frame(files, every=True)
    joined = points.merge(about, on=_KEY, how="left", validate="many_to_one")
    readings = pd.json_normalize(points["readings"].map(lambda found: dict(found or {})).tolist()).add_prefix(
        "reading."
    )
    return pd.concat([joined.drop(columns="readings"), readings.set_axis(joined.index)], axis="columns")


def _objectives(files: Sequence[FileResults], runs: pd.DataFrame) -> pd.Series[Any]:
    """What ``value`` is, of every run."""
    known = {study.record.study: study.objective for file in files for study in file.studies}
    return runs["study"].map(known).rename("objective")


def _param_columns(runs: pd.DataFrame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = [
        {f"{PARAM_PREFIX}{name}": value for name, value in params.items()} for params in runs["params"]
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    return pd.DataFrame(columns, index=runs.index)


def _column(values: Sequence[Any]) -> pd.Series[Any]:
    """Numbers as floats, words and truth values as they are; values of several kinds as JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return pd.Series([None if value is None else float(value) for value in values], dtype=float)
    if len(kinds) > 1:
        return pd.Series([None if value is None else json.dumps(value) for value in values], dtype=object)
    return pd.Series(list(values), dtype=object)
