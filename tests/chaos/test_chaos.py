"""The short form of ``python -m tests.chaos``, and its long form in ``make test-all``."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.__main__ import page
from tests.chaos.kills import Kills, kill_cycles
from tests.chaos.malformed import good_database, wrong_databases, wrong_study_files
from tests.chaos.places import Places, bad_places
from tests.chaos.user_code import MISDEEDS, Misdeeds, misdeeds

QUICK = ("closes the standard streams", "forks and goes on")


def test_kills(tmp_path: Path) -> None:
    kills = kill_cycles(tmp_path, cycles=6, seed=random.randrange(2**32))
    assert not kills.faults
    assert kills.cycles.total() == 6
    assert kills.studies


def test_user_code(tmp_path: Path) -> None:
    assert not misdeeds(tmp_path, list(QUICK)).faults


def test_bad_places(tmp_path: Path) -> None:
    found = bad_places(tmp_path / "places", rounds=1, seed=random.randrange(2**32))
    assert not found.faults
    assert len(found.tried) >= 3


def test_wrong_study_files(tmp_path: Path) -> None:
    assert wrong_study_files(tmp_path, count=40) == (40, [])


def test_wrong_databases_and_imports(tmp_path: Path) -> None:
    good = good_database(tmp_path)
    assert wrong_databases(tmp_path, good, count=8) == (8, [])


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_kills_at_length(tmp_path: Path) -> None:
    """As ``test_kills``."""
    kills = kill_cycles(tmp_path, cycles=int(os.environ.get("KFTUNE_KILL_CYCLES", "500")))
    assert not kills.faults
    assert kills.cycles.total() >= 500


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_rest_at_length(tmp_path: Path) -> None:
    """As the other tests here."""
    assert not misdeeds(tmp_path / "code", list(MISDEEDS)).faults
    assert not bad_places(tmp_path / "places", rounds=10).faults
    (tmp_path / "files").mkdir()
    assert wrong_study_files(tmp_path / "files", count=150) == (150, [])
    (tmp_path / "databases").mkdir()
    good = good_database(tmp_path)
    assert wrong_databases(tmp_path / "databases", good, count=40) == (40, [])


def test_the_page_counts_what_was_found() -> None:
    kills, places = Kills(), Places()
    kills.cycles["worker", "KILL"] = 7
    places.add("two runners at once", ["both work"])
    lines = list(page(kills, Misdeeds(["exits"], []), places, (3, ["x"]), (2, []), "command", 60.0))
    assert "| two runners at once | 1 | 1 | one works, the other says which process does |" in lines
    assert "| a worker | 0 | 0 | 0 | 7 |" in lines
    assert any(line.startswith("| wrong study files | 3 | 1 |") for line in lines)
