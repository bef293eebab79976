"""Every study file of the repository is valid and runs; ``tests/house`` sees to those in the pages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kftune.problems import PROBLEMS
from kftune.results import Outcome
from kftune.storage.repository import Repository
from kftune.study.config import load_config, make_plans
from kftune.study.sessions.search import run_studies

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "studies").glob("**/*.yaml"))
DATA = Path(os.environ.get("KFTUNE_TEST_DATA", ROOT.parent / "shared" / "data"))
SMALL = ("budget={updates: 1}", "trials=1", "repeats=1", "devices=cpu", "threads=1", "evaluation.points=1")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_file_is_valid_and_bears_its_name(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert len(make_plans(config)) == len(config.problems) * len(config.optimizers)


@pytest.mark.parametrize(
    "path",
    # The thesis' settings are its study's problem and optimizers again, at fixed hyperparameters.
    [pytest.param(path, marks=pytest.mark.full if path.stem == "thesis_settings_cpu" else ()) for path in STUDIES],
    ids=lambda path: path.stem,
)
def test_a_study_file_runs(path: Path, tmp_path: Path) -> None:
    config = load_config(path, (*SMALL, f"storage={tmp_path / 'study.db'}"))
    for problem in config.problems:
        dataset = PROBLEMS.get(problem.name).dataset if problem.target is None else None
        if dataset is not None and not (DATA / dataset).is_dir():
            pytest.skip(f"no {dataset} in {DATA} (KFTUNE_TEST_DATA)")
    with Repository.open(config.storage) as repository:
        summary = run_studies(config, repository=repository, devices=["cpu"], data_dir=DATA)
        runs = repository.runs()
    assert summary.outcome == "complete"
    assert len(runs) == len(make_plans(config))
    for run in runs:
        assert run.result.outcome is Outcome.COMPLETED, run.result.message
        assert run.result.updates == 1
