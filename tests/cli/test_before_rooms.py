"""A database and its study files of before the rearrangement (schema 0003): they are read, and gone on with.

The fixture was made, in an empty directory, by the version that came before, with ``kftune run before.yaml``,
``kftune confirm before --top 1 --seeds 2`` and ``kftune run pruned.yaml``. What is expected was printed by that
version: by ``status``, ``best`` and ``compare --json`` of the same files, and by ``kftune run before.yaml --set trials=6`` on a
copy of them for what the sampler proposes next.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command, spawn
from tests.processes.database import connected

FIXTURE = Path(__file__).parents[1] / "fixtures" / "before_rooms"
NEXT = {
    "before/digits_mlp/sgd": {"lr": 0.0012110085353983465, "momentum": 0.5644131996747568, "batch_size": 98},
    "before/digits_mlp/kfac": {
        "statistics_every": 1,
        "inverses_every": 20,
        "lr": 0.017512065619148275,
        "damping": 0.00010000000000000009,
        "kl_clip": 0.00040065243875566,
        "momentum": 0.8621596857418428,
        "batch_size": 196,
    },
}


@pytest.fixture
def before(workdir: Path) -> Path:
    """The files in the current directory."""
    for path in FIXTURE.iterdir():
        shutil.copy(path, workdir)
    return workdir


def rows_of(database: Path, table: str) -> list[tuple[Any, ...]]:
    with connected(database, read_only=True) as connection:
        return connection.execute(f"select * from {table} order by 1, 2").fetchall()


def test_it_is_read_as_it_was(before: Path, kftune: Command) -> None:
    kept = (before / "before.db").read_bytes()
    status = json.loads(kftune("status", "--storage", "before.db", "--json").out)
    (searched,) = [file for file in status["files"] if file["name"] == "before"]
    found = {s["study"]: (s["n_finished"], s["n_runs"], s["best_trial"], s["best_value"]) for s in searched["studies"]}
    assert found == {
        "before/digits_mlp/sgd": (5, 10, 4, 2.2241550021701393),
        "before/digits_mlp/kfac": (5, 10, 0, 0.2737393591139052),
    }
    ranks = {
        study["study"]: [best["trial"] for best in study["configurations"]]
        for study in json.loads(kftune("best", "before", "--storage", "before.db", "--json").out)
    }
    assert ranks == {"before/digits_mlp/sgd": [4, 3, 2, 1], "before/digits_mlp/kfac": [0, 3, 2, 4]}
    verdict = json.loads(kftune("compare", "before", "--storage", "before.db", "--json").out)["problems"][0]
    first = verdict["rows"][0]
    assert (first["optimizer"], first["trial"], first["is_confirmed"], first["n_seeds"]) == ("kfac", 0, True, 2)
    assert first["loss"] == 0.32136658562554254
    assert kftune("dashboard", "before", "--storage", "before.db", "--out", "page.html").code == 0
    assert "kfac" in (before / "page.html").read_text()
    assert (before / "before.db").read_bytes() == kept  # reading brings nothing up to date


def test_the_study_file_goes_on_with_the_trial_that_was_next(before: Path) -> None:
    database = before / "before.db"
    kept = rows_of(database, "kftune_run")
    points = rows_of(database, "kftune_point")
    done = spawn("run", "before.yaml", "--set", "trials=6", cwd=before)
    assert (done.code, done.err) == (0, "")
    now = rows_of(database, "kftune_run")
    assert [row[: len(kept[0])] for row in now[: len(kept)]] == kept  # new columns stand behind the old ones
    assert rows_of(database, "kftune_point")[: len(points)] == points
    assert len(now) == len(kept) + 2 * 2
    with connected(database, read_only=True) as connection:
        added = connection.execute(
            "select kftune_study.study, params from kftune_run join kftune_study on kftune_study.id = study_id "
            "where trial = 5 and repeat = 0"
        ).fetchall()
    proposed = {study: json.loads(params) for study, params in added}
    assert set(proposed) == set(NEXT)
    for study, params in NEXT.items():
        # The proposal is where an optimizer of the acquisition function stopped, which another BLAS does elsewhere.
        assert proposed[study] == pytest.approx(params, rel=1e-4)


def test_the_database_alone_goes_on(before: Path) -> None:
    done = spawn("resume", "pruned", "--storage", "before.db", cwd=before)
    assert (done.code, done.err) == (0, "")
    assert "pruned is complete already" in done.out
    more = spawn("resume", "pruned", "--storage", "before.db", "--set", "trials=5", "--set", "limit.trials=10", cwd=before)
    assert (more.code, more.err) == (0, "")
    status = json.loads(spawn("status", "pruned", "--storage", "before.db", "--json", cwd=before).out)
    assert [study["n_finished"] for file in status["files"] for study in file["studies"]] == [5, 5]
