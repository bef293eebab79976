"""``enqueue``: settings of one's own come first, are checked against the space, and are what is then trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kftune as library
from kftune.errors import UsageError
from kftune.storage.repository import Repository
from kftune.study.sessions.lock import sole_runner
from tests.cli.conftest import Command

STUDY = """\
name: mine
problems: [digits_mlp]
optimizers:
  - {name: sgd, fixed: {batch_size: 64}, space: {lr: {low: 1e-3, high: 1, log: true}}}
  - {name: kfac, fixed: {batch_size: 64}, space: {damping: {low: 1e-2, high: 10, log: true, relative_to: lr}}}
budget: {updates: 2}
trials: 2
repeats: 1
startup_trials: 1
sampler: tpe
threads: 1
devices: cpu
evaluation: {points: 1}
"""


@pytest.fixture
def mine(workdir: Path) -> Path:
    path = workdir / "mine.yaml"
    path.write_text(STUDY)
    return path


def params(optimizer: str) -> list[Any]:
    with Repository.open("sqlite:///mine.db", read_only=True) as repository:
        return [run.params for run in repository.runs(f"mine/digits_mlp/{optimizer}")]


def test_they_come_first_in_a_study_that_is_not_begun(kftune: Command, mine: Path) -> None:
    result = kftune("enqueue", "mine.yaml", "lr=0.25", "momentum=0.5", "--optimizer", "sgd")
    assert (result.code, result.err) == (0, "")
    assert "mine/digits_mlp/sgd: lr=0.25, momentum=0.5 is trial 0" in result.out
    assert "Go on with: kftune run mine.yaml" in result.out
    given = json.loads(kftune("enqueue", "mine.yaml", "lr=1e-1", "damping=0.02", "--optimizer", "kfac", "--json").out)
    assert given["enqueued"] == {"mine/digits_mlp/kfac": 0}
    again = kftune("enqueue", "mine.yaml", "lr=0.25", "momentum=0.5", "--optimizer", "sgd")
    assert "it waits there, or was tried, already" in again.out
    assert kftune("run", "mine.yaml").code == 0
    sgd, kfac = params("sgd"), params("kfac")
    assert (sgd[0]["lr"], sgd[0]["momentum"], len(sgd)) == (0.25, pytest.approx(0.5, rel=1e-12), 2)
    assert (kfac[0]["lr"], kfac[0]["damping"], len(kfac)) == (0.1, pytest.approx(0.02, rel=1e-12), 2)


def test_they_are_next_in_a_study_that_is_under_way(kftune: Command, mine: Path) -> None:
    assert kftune("run", "mine.yaml", "--set", "trials=1").code == 0
    full = kftune("enqueue", "mine/digits_mlp/sgd", "lr=0.5")
    assert "has its 1 trials: it is tried when there are more" in full.out
    assert "not given: the sampler chooses" in full.out
    assert kftune("enqueue", "mine", "lr=0.75", "--optimizer", "sgd", "--storage", "mine.db").code == 0
    assert kftune("resume", "--set", "trials=3").code == 0
    assert [found["lr"] for found in params("sgd")][1:] == [0.5, 0.75]


def test_the_same_from_python(mine: Path) -> None:
    study = library.Study(mine)
    with pytest.raises(UsageError, match="did you mean 'lr'"):
        study.enqueue({"lrr": 0.1}, optimizer="sgd")
    assert not mine.with_name("mine.db").exists()
    study.enqueue({"lr": 0.1}, optimizer="sgd")
    study.run(progress=False)
    assert params("sgd")[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["lr=0.1"], "several optimizers could be meant: name one of sgd, kfac"),
        (["lr=0.1", "--optimizer", "kfak"], "unknown optimizer 'kfak'; did you mean 'kfac'? (available: kfac, sgd)"),
        (
            ["lr=0.1", "--optimizer", "sgd", "--problem", "digits"],
            "unknown problem 'digits'; did you mean 'digits_mlp'",
        ),
        (["momentun=0.1", "--optimizer", "sgd"], "has no hyperparameter 'momentun'; did you mean 'momentum'? (avail"),
        (["lr=2", "--optimizer", "sgd"], "mine/digits_mlp/sgd: lr must be from 0.001 to 1 (its box), got lr=2"),
        (["lr=true", "--optimizer", "sgd"], "lr must be from 0.001 to 1 (its box), got lr=True"),
        (["lr=fast", "--optimizer", "sgd"], "lr must be from 0.001 to 1 (its box), got lr='fast'"),
        (["batch_size=32", "--optimizer", "sgd"], "mine/digits_mlp/sgd: batch_size is fixed at 64, got 32"),
        (["damping=0.1", "--optimizer", "kfac"], "mine/digits_mlp/kfac: damping depends on lr, so give that too"),
        (["lr=0.1", "damping=5", "--optimizer", "kfac"], "damping/lr must be from 0.01 to 10 (its box), got damping=5"),
        (["lr", "--optimizer", "sgd"], "'lr' must be KEY=VALUE, e.g. lr=0.1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_named_and_nothing_is_stored(
    kftune: Command, mine: Path, arguments: list[str], line: str
) -> None:
    result = kftune("enqueue", "mine.yaml", *arguments)
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert line in result.err
    assert list(mine.parent.iterdir()) == [mine]


def test_not_while_it_runs(kftune: Command, mine: Path) -> None:
    assert kftune("run", "mine.yaml").code == 0
    with sole_runner(mine.with_name("mine.db")):
        result = kftune("enqueue", "mine.yaml", "lr=0.1", "--optimizer", "sgd")
    assert (result.code, result.err.endswith("is running studies in it now\n")) == (2, True)
