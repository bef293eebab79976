"""Every study file of the repository is valid and runs; so do the README's examples."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kftune.problems import PROBLEMS
from kftune.storage.repository import Repository
from kftune.study.config import config_from_dict, load_config
from kftune.study.runner import run_studies
from kftune.training.results import Outcome

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "studies").glob("**/*.yaml"))
DATA = Path(os.environ.get("KFTUNE_TEST_DATA", ROOT.parent / "shared" / "data"))
SMALL = ("budget={updates: 1}", "trials=1", "repeats=1", "devices=cpu", "threads=1", "evaluation.points=1")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_file_is_valid_and_bears_its_name(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert len(config.plans()) == len(config.problems) * len(config.optimizers)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
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
    assert len(runs) == len(config.plans())
    for run in runs:
        assert run.result.outcome is Outcome.COMPLETED, run.result.message
        assert run.result.updates == 1


def readme_block(language: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def test_the_readmes_training_loop_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(readme_block("python"), names)  # exactly what a reader would paste
    assert float(names["loss"]) < 1.0  # from ln 5 = 1.6 on random labels
    assert (tmp_path / "optimizer.pt").exists()


def test_the_readmes_study_is_the_quickstart() -> None:
    shown = config_from_dict(yaml.safe_load(readme_block("yaml")), "README.md")
    assert shown == load_config(ROOT / "studies" / "quickstart.yaml")
