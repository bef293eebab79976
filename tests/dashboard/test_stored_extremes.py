"""Whatever numbers and texts stand in a database, there is a page about it."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from kftune.cli import main
from kftune.dashboard.page import write_page

EXTREMES = ("9e999", "-9e999", "1e308", "-1e308", "5e-324", "0.0", "-1.0", "1e-300")  # 9e999 is SQLite's infinity
WHERE = ("1", "run_id % 3 = 0", "position = 0", "position > 2", "run_id % 5 = position")
SECONDS = ("wall_seconds", "train_seconds", "evaluation_seconds", "overshoot_seconds", "setup_seconds")


def spoil(database: Path, rng: random.Random) -> None:
    """Write some extremes over what is stored."""
    with sqlite3.connect(database) as connection:
        for _ in range(rng.choice([1, 1, 2, 4])):
            column = rng.choice(["test_loss", "train_loss", "accuracy", "train_seconds"])
            value, where = rng.choice(EXTREMES), rng.choice(WHERE)
            connection.execute(f"UPDATE kftune_point SET {column} = {value} WHERE {where}")
        if rng.random() < 0.4:
            value, infinite = rng.choice([("NULL", "INF_POS"), ("NULL", "INF_NEG"), ("1e308", "FINITE")])
            connection.execute(
                f"UPDATE trial_values SET value = {value}, value_type = '{infinite}' WHERE trial_id % 2 = 0"
            )
        if rng.random() < 0.3:
            connection.execute(f"UPDATE kftune_run SET {rng.choice(SECONDS)} = {rng.choice(EXTREMES)} WHERE id % 2 = 0")
        if rng.random() < 0.3:
            # As a column of JSON spells what JSON has not.
            wall = rng.choice([{"$float": "nan"}, {"$float": "inf"}, 1e308, -1.0])
            ledger = {"wall": wall, "asking": wall, "storing": wall, "slots": 2.0, "busy": wall}
            connection.execute("UPDATE kftune_session SET ledger = ?", (json.dumps(ledger),))
        if rng.random() < 0.3:
            text = "x" * 200_000 + "<script>\x00"
            connection.execute("UPDATE kftune_run SET message = ?, outcome = 'crashed' WHERE id % 3 = 0", (text,))
    connection.close()


@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(10, 150))])
def test_there_is_a_page_whatever_is_stored(confirmed_database: Path, tmp_path: Path, seed: int) -> None:
    database = tmp_path / "results.db"
    shutil.copy(confirmed_database, database)
    spoil(database, random.Random(seed))
    assert write_page({f"sqlite:///{database}": None}, out=tmp_path / "page.html") == ["thesis_cpu"]


@pytest.mark.parametrize("command", [["best"], ["status"], ["compare"], ["best", "--json"]])
def test_tables_are_made_where_every_loss_is_infinite(
    studied: Path, tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "results.db"
    shutil.copy(studied, database)
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE kftune_point SET test_loss = 9e999, train_loss = 9e999")
        connection.execute("UPDATE trial_values SET value = NULL, value_type = 'INF_POS'")
    connection.close()
    assert main([*command, "--storage", str(database)]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "nan" not in shown.lower().replace("nanoseconds", "")
    assert "no result yet" not in shown
