"""``run --widen NEW``: a box that was made wider in the study file begins with the trials of the stored one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.search_space import intersection_search_space

import kftune as library
from kftune.errors import UsageError
from kftune.storage.repository import Repository
from tests.cli.conftest import Command

STUDY = """\
name: mine
problems: [digits_mlp]
optimizers:
  - name: sgd
    fixed: {batch_size: 64, momentum: 0.5, weight_decay: 0.0}
    space: {lr: {low: 1e-3, high: 1e-2, log: true}}
budget: {updates: 2}
trials: 3
repeats: 1
startup_trials: 1
sampler: tpe
threads: 1
devices: cpu
evaluation: {points: 1}
storage: mine.db
"""
WIDE = STUDY.replace("low: 1e-3, high: 1e-2", "low: 1e-4, high: 1").replace(", momentum: 0.5", "")
WIDE = WIDE.replace("space: {", "space: {momentum: {low: 0.1, high: 0.9}, ")


@pytest.fixture
def mine(kftune: Command, workdir: Path) -> Path:
    """A study that was run, whose file has a wider box and one dimension more by now."""
    path = workdir / "mine.yaml"
    path.write_text(STUDY)
    assert kftune("run", "mine.yaml").code == 0
    path.write_text(WIDE)
    return path


def stored(name: str) -> list[Any]:
    with Repository.open("sqlite:///mine.db", read_only=True) as repository:
        trials = [(t.state, t.value) for t in repository.trials(f"{name}/digits_mlp/sgd")]
        runs = [(r.params, r.result) for r in repository.runs(f"{name}/digits_mlp/sgd")]
    return list(zip(trials, runs, strict=True))


def test_the_sampler_is_told_of_the_old_trials(kftune: Command, mine: Path) -> None:
    before = stored("mine")
    refused = kftune("run", "mine.yaml", "--set", "trials=5")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert "`kftune run STUDY.yaml --widen NEW` begins NEW with the stored trials" in refused.err
    assert "--widen" not in kftune("run", "mine.yaml", "--set", "repeats=2").err

    command = ("run", "mine.yaml", "--set", "trials=5", "--widen", "wide")
    result = kftune(*command)
    assert (result.code, result.err) == (0, "")
    assert "wide/digits_mlp/sgd begins with 3 trials of mine/digits_mlp/sgd" in result.out
    found = stored("wide")
    assert (found[:3], len(found), stored("mine")) == (before, 5, before)
    trials = optuna.load_study(study_name="wide/digits_mlp/sgd", storage="sqlite:///mine.db").trials
    assert set(intersection_search_space(trials)) == {"lr", "1-momentum"}  # 1 - momentum is what the sampler sees
    assert len({repr(sorted(trial.distributions.items())) for trial in trials}) == 1
    assert "wide is complete already" in kftune(*command).out
    mine.write_text(WIDE.replace("name: mine", "name: wide").replace("trials: 3", "trials: 5"))
    assert "wide is complete already" in kftune("run", "mine.yaml").out


def test_the_same_from_python(mine: Path) -> None:
    study = library.Study(mine, overrides=["trials=4"])
    with pytest.raises(UsageError, match="needs another name than 'mine'"):
        study.widen("mine")
    study.widen("wide")
    assert len(study.run(progress=False).trials()) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("high: 1,", "high: 5e-3,"), "the box of lr does not hold the stored one"),
        (("low: 0.1, high: 0.9", "low: 0.6, high: 0.9"), "the box of momentum does not hold the stored one"),
        (("batch_size: 64", "batch_size: 32"), "the box of batch_size does not hold the stored one"),
        (("updates: 2", "updates: 3"), "budget is not what it was in mine/digits_mlp/sgd; only boxes may be wider"),
        (("name: mine", "name: none"), "mine.db holds no study 'none', so there is nothing to widen"),
    ],
)
def test_what_is_no_wider_box_is_refused(kftune: Command, mine: Path, change: tuple[str, str], said: str) -> None:
    assert change[0] in WIDE
    mine.write_text(WIDE.replace(*change))
    result = kftune("run", "mine.yaml", "--widen", "wide")
    assert (result.code, len(result.err.splitlines()), result.out) == (2, 1, "")
    assert said in result.err
    with Repository.open("sqlite:///mine.db", read_only=True) as repository:
        assert repository.file_names() == ["mine"]
    assert "--widen: must begin with" in kftune("run", "mine.yaml", "--widen", "a/b").err
