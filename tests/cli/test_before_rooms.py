"""A database and study files of an earlier version: they open, show what they held, and go on as that version would.

``tests/fixtures/before_rooms`` was made by the last version before the modules of studies were rearranged, with
``kftune run before.yaml``, ``kftune confirm before --top 1 --seeds 2`` and ``kftune run pruned.yaml``. What is expected
here was read off it with that version. What the next trials are to try was found by that version, too, on a copy, with
``kftune run before.yaml --set trials=6`` and ``kftune run pruned.yaml --set trials=5 --set limit.trials=10``: what
comes out of an optimisation may differ in its last digits from one machine to the next.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kftune.storage.records import RunRecord, TrialRecord
from kftune.storage.repository import Repository
from tests.cli.conftest import Command

FIXTURE = Path(__file__).parents[1] / "fixtures" / "before_rooms"
SGD, KFAC = "before/digits_mlp/sgd", "before/digits_mlp/kfac"
ADAMW, FOOF = "pruned/digits_mlp/adamw", "pruned/digits_mlp/foof"

NEXT = {
    SGD: {"lr": 0.0012110085353983465, "1-momentum": 0.4355868003252432, "batch_size": 98},
    KFAC: {
        "lr": 0.017512065619148275,
        "damping": 0.00010000000000000009,
        "kl_clip": 0.00040065243875566,
        "1-momentum": 0.13784031425815718,
        "batch_size": 196,
    },
    ADAMW: {
        "lr": 0.024233728518065652,
        "1-beta1": 0.01629602552847218,
        "1-beta2": 0.057886843331917306,
        "weight_decay": 1.911664846904046e-05,
        "batch_size": 48,
    },
    FOOF: {
        "lr": 92.64515779461249,
        "damping": 0.04776633568003522,
        "1-momentum": 0.15277171963836203,
        "batch_size": 216,
    },
}
"""The sampled values of the first trial that is not stored, by study."""


class Stored(NamedTuple):
    """All that a database holds of some studies."""

    trials: dict[str, list[TrialRecord]]
    runs: list[RunRecord]


@pytest.fixture
def database(workdir: Path) -> Path:
    """The database, and beside it its study files, in the current directory."""
    for file in FIXTURE.iterdir():
        shutil.copy(file, workdir)
    return workdir / "before.db"


def stored(database: Path) -> Stored:
    with Repository.open(f"sqlite:///{database}", read_only=True) as repository:
        return Stored(
            trials={study: repository.trials(study) for study in NEXT},
            runs=[run for purpose in ("search", "confirm") for run in repository.runs(purpose=purpose)],
        )


def shown(kftune: Command, *arguments: str) -> Any:
    result = kftune(*arguments, "--json")
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_it_shows_what_it_held(kftune: Command, database: Path) -> None:
    content = database.read_bytes()
    (file,) = shown(kftune, "status", "before.yaml")["files"]
    keys = ("study", "n_finished", "n_trials", "n_runs", "best_trial", "best_value", "outcomes", "is_complete")
    assert [tuple(study[key] for key in keys) for study in file["studies"]] == [
        (SGD, 5, 5, 10, 4, 2.2241550021701393, {"completed": 10}, True),
        (KFAC, 5, 5, 10, 0, 0.2737393591139052, {"completed": 10}, True),
    ]
    assert (file["name"], file["n_sessions"]) == ("before", 2)
    assert file["ledger"]["wall_seconds"] == 8.689131866000025

    sgd, kfac = shown(kftune, "best", "before", "--storage", "before.db")
    assert [(each["trial"], each["value"]) for each in sgd["configurations"]] == [
        (4, 2.2241550021701393),
        (3, 2.224298010932075),
        (2, 2.2451754252115883),
        (1, 2.2574874030219183),
    ]
    assert kfac["configurations"][0]["run_values"] == [0.2909078809950087, 0.25657083723280166]
    assert kfac["configurations"][0]["params"] == {
        "statistics_every": 1,
        "inverses_every": 20,
        "lr": 0.004395597043518484,
        "damping": 0.00014813933810303405,
        "kl_clip": 0.00041205573118356984,
        "momentum": 0.6537875349061569,
        "batch_size": 402,
    }

    (problem,) = shown(kftune, "compare", "before", "--storage", "before.db")["problems"]
    assert problem["is_confirmed"] is True
    rows = [(row["optimizer"], row["trial"], row["loss"], row["tuned"], row["n_seeds"]) for row in problem["rows"]]
    assert rows == [
        ("kfac", 0, pytest.approx(0.32136658562554254, rel=1e-12), 0.2737393591139052, 2),
        ("sgd", 4, pytest.approx(2.1774322509765627, rel=1e-12), 2.2241550021701393, 2),
    ]
    assert problem["comparisons"][0]["difference"] == pytest.approx(-1.8560656653510201, rel=1e-9)
    assert problem["comparisons"][0]["p_value"] == pytest.approx(0.020178090303727594, rel=1e-6)

    (file,) = shown(kftune, "status", "pruned.yaml")["files"]
    assert [tuple(study[key] for key in keys) for study in file["studies"]] == [
        (ADAMW, 4, 4, 4, 0, 1.2099612765842014, {"completed": 3, "pruned": 1}, True),
        (FOOF, 4, 4, 4, 1, 0.8057202657063802, {"completed": 2, "pruned": 2}, True),
    ]
    assert database.read_bytes() == content


def assert_one_more(before: Stored, after: Stored, studies: tuple[str, ...], *, n_runs: int) -> None:
    """Each of ``studies`` has one trial more, the expected one, with its runs; all else is what it was."""
    for study, trials in before.trials.items():
        n = len(trials)
        assert after.trials[study][:n] == trials
        assert len(after.trials[study]) == n + (study in studies)
        if study in studies:
            new = after.trials[study][n]
            assert new.params == pytest.approx(NEXT[study], rel=1e-6)
            assert new.state in ("complete", "pruned")
    n_before = {study: len(trials) for study, trials in before.trials.items()}
    old = [run for run in after.runs if run.trial < n_before[run.study]]
    new_runs = [run for run in after.runs if run.trial >= n_before[run.study]]
    assert old == before.runs
    assert [run.study for run in new_runs] == [study for study in studies for _ in range(n_runs)]


def test_a_study_gets_one_trial_more_and_keeps_the_others(kftune: Command, database: Path) -> None:
    before = stored(database)
    assert [(run.study, run.trial, run.repeat) for run in before.runs if run.purpose == "confirm"] == [
        (SGD, 4, 0),
        (SGD, 4, 1),
        (KFAC, 0, 0),
        (KFAC, 0, 1),
    ]
    result = kftune("run", "before.yaml", "--set", "trials=6")
    assert (result.code, result.err) == (0, "")
    assert_one_more(before, stored(database), (SGD, KFAC), n_runs=2)


def test_a_study_with_pruned_trials_is_complete_and_goes_on(kftune: Command, database: Path) -> None:
    before = stored(database)
    result = kftune("resume", "pruned")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("pruned is complete already: every study has its 4 trials; nothing to do\n")
    assert stored(database) == before
    # What it was to start from it has had, and is not given again.
    assert kftune("run", "pruned.yaml", "--set", "trials=5", "--set", "limit.trials=10").code == 0
    assert_one_more(before, stored(database), (ADAMW, FOOF), n_runs=1)
