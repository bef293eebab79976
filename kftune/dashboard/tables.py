"""The exact data behind a page, as CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kftune.analysis.stored.exporting import long_points, long_runs
from kftune.analysis.stored.frames import trials_frame
from kftune.analysis.stored.results import FileResults
from kftune.dashboard.page import write_whole

__all__ = ["write_tables"]


def write_tables(files: Sequence[FileResults], directory: Path) -> list[Path]:
    """Write ``trials.csv``, ``runs.csv`` and ``curves.csv``, each whole or not at all.

    Args:
        files: with curves.
        directory: made if need be.

    Returns:
        What was written.

    Raises:
        UsageError: one of them cannot be written.
    """
    tables = {"trials.csv": trials_frame(files), "runs.csv": long_runs(files), "curves.csv": long_points(files)}
    for name, table in tables.items():
        write_whole(directory / name, table.to_csv(index=False).encode("utf-8"))
    return [directory / name for name in tables]
