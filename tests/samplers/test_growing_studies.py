"""Grids that grow, in studies: limits of hyperparameters, the number of trials, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from kftune.cli import main
from kftune.space import Float
from kftune.storage.repository import Repository
from kftune.study.config import StudyPlan, load_config, make_plans

STUDY = """\
name: grid
problems: [digits_mlp]
optimizers: [{name: sgd, space: {SPACE}, fixed: {FIXED}}]
sampler: {name: grid, SAMPLER}
budget: {updates: 3}
evaluation: {points: 1, train_examples: 10}
repeats: 1
trials: 9
devices: [cpu]
threads: 1
storage: s.db
"""
LR = "{lr: {low: 1.0e-4, high: 1.0e-3, log: true}}"


def study_file(place: Path, *, space: str = LR, fixed: str = "{batch_size: 64, momentum: 0.0}", options: str) -> Path:
    path = place / "study.yaml"
    text = STUDY.replace("{SPACE}", space).replace("{FIXED}", fixed).replace("SAMPLER", options)
    path.write_text(text)
    return path


def plan(path: Path) -> StudyPlan:
    (found,) = make_plans(load_config(path))
    return found


def trials() -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="grid/digits_mlp/sgd", storage="sqlite:///s.db").trials


def test_the_box_is_left_as_far_as_the_optimizer_lets_it(tmp_path: Path) -> None:
    space = "{lr: {low: 0.1, high: 1.0, log: true}, momentum: {low: 0.03, high: 0.3, log: true, complement: false}}"
    found = plan(study_file(tmp_path, space=space, fixed="{batch_size: 64}", options="extend: 3"))
    assert found.widest is not None
    lr, momentum = (found.widest.dimensions[name] for name in ("lr", "momentum"))
    assert lr == Float(low=3e-3, high=30.0, log=True)
    assert isinstance(momentum, Float)
    assert momentum.low == pytest.approx(1e-3)
    assert 0.99 < momentum.high < 1.0  # 3 and 10, the third step, are none
    assert found.space.dimensions["momentum"] == Float(low=0.03, high=0.3, log=True)
    assert plan(study_file(tmp_path, options="extend: 0")).widest == found.space.override(
        {"lr": Float(low=1e-4, high=1e-3, log=True)}, {"batch_size": 64, "momentum": 0.0}
    )


def test_other_samplers_stay_in_the_box(tmp_path: Path) -> None:
    path = study_file(tmp_path, options="extend: 0")
    path.write_text(path.read_text().replace("{name: grid, extend: 0}", "random"))
    assert plan(path).widest is None


def test_a_study_grows_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three updates want a larger learning rate than 10⁻³: two more steps, 3·10⁻³ and 10⁻², are all it may take."""
    monkeypatch.chdir(tmp_path)
    path = study_file(tmp_path, options="extend: 2")
    assert main(["run", str(path), "--set", "trials=4"]) == 0
    assert sorted(_lr(t) for t in trials()[:3]) == [1e-4, 3e-4, 1e-3]
    assert [_lr(t) for t in trials()[3:]] == [3e-3]
    assert main(["run", str(path)]) == 0  # goes on where it was
    assert [_lr(t) for t in trials()[3:]] == [3e-3, 1e-2]
    assert all(t.distributions["lr"] == optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True) for t in trials())
    assert main(["run", str(path)]) == 0
    with Repository.open("sqlite:///s.db", read_only=True) as repository:
        (record,) = repository.studies()
        assert record.n_trials == 5
        assert len(repository.runs(record.study)) == 5
    capsys.readouterr()
    assert main(["status", "s.db"]) == 0
    assert "5 of 5 trials" in capsys.readouterr().out


def _lr(trial: optuna.trial.FrozenTrial) -> Any:
    return trial.params["lr"]
