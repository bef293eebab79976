"""Every study file of the repository is valid and runs; so do the README's examples."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kftune.problems import PROBLEMS
from kftune.results import Outcome
from kftune.storage.repository import Repository
from kftune.study.config import config_from_dict, load_config, make_plans
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
    assert len(runs) == len(make_plans(config))
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


def readme_section(title: str, language: str) -> str:
    """The first block of a language after a heading or sentence."""
    _, text = (ROOT / "README.md").read_text().split(title, 1)
    (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[:1]
    return str(block)


def test_the_readmes_rarer_keys_are_keys() -> None:
    rarer = yaml.safe_load(readme_section("Less often needed keys of a study file", "yml"))
    quickstart = yaml.safe_load(readme_block("yaml"))
    config = config_from_dict(quickstart | rarer, "README.md")
    assert config.to_dict()["budget"] == rarer["budget"]
    assert [start.source for start in config.warm_start] == ["other", "old.db#mnist"]


def test_the_readmes_study_in_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    program = readme_section("The same from Python", "py")
    for long, short in (
        ('{"seconds": 1}, trials=12', '{"updates": 2}, trials=2'),
        ("top=2, seeds=5", "top=1, seeds=1"),
    ):
        assert long in program
        program = program.replace(long, short)
    exec(program, {})
    assert "kfac" in capsys.readouterr().out
    with Repository.open("sqlite:///mine.db", create=False) as repository:
        assert len(repository.runs()) == 2 * 2 * 2
        assert len(repository.runs(purpose="confirm")) == 2
