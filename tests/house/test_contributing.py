"""CONTRIBUTING.md: its drawing is of today's layers, and its four examples are a package that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.pages import ROOT, blocks, write_files
from tools.draw_layers import contracts, with_drawing

PAGE = ROOT / "CONTRIBUTING.md"
STUDY = """\
name: additions
problems: [rings_mlp]
optimizers: [normalized]
budget: {updates: 10}
trials: 2
repeats: 1
startup_trials: 1
sampler: {name: halves, upper: true}
devices: cpu
threads: 1
evaluation: {points: 2}
"""
DESCRIBE = """
import sys
from kftune.cli import main
for command in sys.argv[1:]:
    assert main(command.split()) == 0
    print("---")
"""
TOGETHER = """
import json
import optuna
import torch
from kftune.cli import main
from kftune.optim import OPTIMIZERS
from kftune.problems import PROBLEMS
from kftune.storage.repository import Repository

assert main(["run", "study.yaml"]) == 0
assert main(["dashboard", "study.yaml", "--out", "page.html"]) == 0
problem = PROBLEMS.get("rings_mlp").load(device=torch.device("cpu"), dtype=torch.float32, data_dir=None)
torch.manual_seed(0)
model = problem.make_model()
entry = OPTIMIZERS.get("normalized")
optimizer = entry.build(model, likelihood=problem.likelihood, params=entry.example)
def closure():
    output = model(problem.train.inputs)
    return problem.loss(output, problem.train.targets), output
losses = [float(optimizer.step(closure)) for _ in range(100)]
with Repository.open("sqlite:///additions.db", create=False) as repository:
    outcomes = [run.result.outcome.value for run in repository.runs()]
(study,) = optuna.get_all_study_names("sqlite:///additions.db")
trials = optuna.load_study(study_name=study, storage="sqlite:///additions.db").trials
last = trials[-1]
low, high = last.distributions["lr"].low, last.distributions["lr"].high
print(json.dumps({"losses": losses, "outcomes": outcomes, "lr": last.params["lr"], "middle": (low * high) ** 0.5}))
"""


def test_the_drawing_is_of_the_layers_that_are_enforced() -> None:
    text = PAGE.read_text()
    assert with_drawing(text) == text, "python tools/draw_layers.py"


def test_the_drawing_has_every_contract_of_layers() -> None:
    drawn = PAGE.read_text()
    enforced = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    containers = [each.get("containers", ["kftune"]) for each in enforced if each["type"] == "layers"]
    assert set(contracts()) == {name for names in containers for name in names}
    for package, layers in contracts().items():
        assert package in drawn
        assert all(f"│ {layer} " in drawn for layer in layers)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's examples, installed in a directory."""
    directory = tmp_path_factory.mktemp("package")
    write_files(PAGE, directory)
    (project,) = (tomllib.loads(block.text)["project"] for block in blocks(PAGE, "toml"))
    info = directory / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in named.items())
        for group, named in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(points))
    return directory


def run_in(package: Path, cwd: Path, *command: str) -> str:
    """A program of Python in an environment in which the package is installed."""
    paths = [str(package), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_four_are_listed_and_described(package: Path, tmp_path: Path) -> None:
    commands = [f"list {kind} --json" for kind in ("optimizers", "problems", "samplers", "panels")]
    commands += [f"describe {name} --json" for name in ("normalized", "rings_mlp", "halves")]
    parts = run_in(package, tmp_path, "-c", DESCRIBE, *commands).split("---")
    for text, name in zip(parts[:4], ("normalized", "rings_mlp", "halves", "widest"), strict=True):
        assert name in [entry["name"] for entry in json.loads(text)]
    optimizer, problem, sampler = (json.loads(text) for text in parts[4:7])
    assert [p["meaning"] for p in optimizer["parameters"] if p["name"] == "lr"] == ["the length of every step."]
    assert (problem["n_train"], problem["n_test"]) == (400, 100)
    assert sampler["options"] == {"upper": False}


def test_they_work_together(package: Path, tmp_path: Path) -> None:
    """A study of two trials on the problem, with the optimizer, by the sampler; its page has the panel."""
    (tmp_path / "study.yaml").write_text(STUDY)
    *_, last = run_in(package, tmp_path, "-c", TOGETHER).splitlines()
    found = json.loads(last)
    assert found["outcomes"] == ["completed", "completed"]
    assert found["lr"] >= found["middle"]  # the sampler's: the upper half
    assert found["losses"][-1] < 0.4 * found["losses"][0]
    page = (tmp_path / "page.html").read_text()
    assert "The longest run" in page
    assert "The most updates that one run" in page
