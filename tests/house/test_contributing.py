"""CONTRIBUTING.md: its drawing is of the layers as they are, and its examples do what it says of them."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
import torch
from torch.nn.functional import cross_entropy

from kftune.space import Float, Int
from kftune.study.samplers.coordinates import to_unit
from tests.house.pages import ROOT, blocks, write_files
from tests.processes import warm
from tools import draw_layers

FILE = ROOT / "CONTRIBUTING.md"
PAGE = FILE.read_text(encoding="utf-8")
EXAMPLES = {"signum", "wine", "nearby", "discovery"}
N_UPDATES = 50
STUDY = """
name: newcomer
problems: [wine_mlp]
optimizers: [signum, sgd]
sampler: {name: nearby, radius: 0.2}
budget: {updates: 30}
repeats: 1
trials: 2
startup_trials: 1
storage: sqlite:///newcomer.db
devices: cpu
threads: 1
"""


def test_the_drawing_is_of_the_layers_as_they_are() -> None:
    drawing = draw_layers.draw(draw_layers.boxes_of((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    assert draw_layers.with_drawing(PAGE, drawing) == PAGE, (
        "The layers of pyproject.toml have changed: run `python tools/draw_layers.py` and commit CONTRIBUTING.md."
    )


def test_every_layer_of_every_contract_is_drawn() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    layers = [layer for contract in contracts if contract["type"] == "layers" for layer in contract["layers"]]
    drawing = PAGE.partition(draw_layers.BEGIN)[2].partition(draw_layers.END)[0]
    drawn = set(re.findall(r"\w[\w.]*", drawing))
    assert {name.removeprefix("kftune.") for layer in layers for name in re.findall(r"[\w.]+", layer)} <= drawn
    assert max(map(len, drawing.splitlines())) <= 80


CONTRACTS = """
[[tool.importlinter.contracts]]
type = "forbidden"
source_modules = ["it.a"]
forbidden_modules = ["numpy"]
[[tool.importlinter.contracts]]
type = "layers"
layers = ["it.top", "it.left|it.right", "(it.maybe)", "it.one : it.two"]
[[tool.importlinter.contracts]]
type = "layers"
containers = ["it.left", "it.right"]
layers = ["a_rather_long_name | another_long_name | third", "below"]
"""
DRAWN = """\
┌─ it ────────────────────────────────┐  ┌─ it.left ───────────────────────────┐
│ top                                 │  │ a_rather_long_name |                │
│ left | right                        │  │   another_long_name | third         │
│ (maybe)                             │  │ below                               │
│ one : two                           │  └─────────────────────────────────────┘
└─────────────────────────────────────┘  ┌─ it.right ──────────────────────────┐
                                         │ a_rather_long_name |                │
                                         │   another_long_name | third         │
                                         │ below                               │
                                         └─────────────────────────────────────┘"""


def test_contracts_become_boxes() -> None:
    assert draw_layers.draw(draw_layers.boxes_of(CONTRACTS)) == DRAWN
    assert draw_layers.draw(draw_layers.boxes_of("")) == ""


def test_the_script_writes_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draw_layers, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text(CONTRACTS, encoding="utf-8")
    page = tmp_path / "CONTRIBUTING.md"
    page.write_text(f"before\n{draw_layers.BEGIN}\nold\n{draw_layers.END}\nafter\n", encoding="utf-8")
    assert draw_layers.main(["--check"]) == 1
    assert "old" in page.read_text(encoding="utf-8")
    assert draw_layers.main([]) == 0
    expected = f"before\n{draw_layers.BEGIN}\n```text\n{DRAWN}\n```\n{draw_layers.END}\nafter\n"
    assert page.read_text(encoding="utf-8") == expected
    assert draw_layers.main(["--check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "CONTRIBUTING.md: the drawing is out of date",
        "CONTRIBUTING.md: the drawing is up to date",
    ]


@pytest.mark.parametrize("text", ["", "{begin}", "{end}{begin}", "{begin}{begin}{end}", "{begin}{end}{end}"])
def test_without_its_markers_nothing_is_written(text: str) -> None:
    with pytest.raises(ValueError, match="must stand in the text, once each and in this order"):
        draw_layers.with_drawing(text.format(begin=draw_layers.BEGIN, end=draw_layers.END), "drawing")


def project() -> dict[str, Any]:
    """What the page's pyproject.toml says."""
    (block,) = blocks(FILE, "toml")
    found: dict[str, Any] = tomllib.loads(block.text)["project"]
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's package is installed, as its pyproject.toml says."""
    directory = tmp_path_factory.mktemp("site")
    write_files(FILE, directory)
    name, version = project()["name"], project()["version"]
    info = directory / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines: list[str] = []
    for group, points in project()["entry-points"].items():
        lines += [f"[{group}]", *(f"{point} = {target}" for point, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return directory


@pytest.fixture
def package(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The page's modules, imported."""
    monkeypatch.syspath_prepend(installed)
    yield {name: importlib.import_module(name) for name in EXAMPLES}
    for name in EXAMPLES:
        del sys.modules[name]


def kftune(directory: Path, *arguments: str) -> str:
    paths = [str(directory), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = warm.run([sys.executable, "-m", "kftune", *arguments], env=environment, cwd=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_an_example_of_each() -> None:
    assert {block.file for block in blocks(FILE, "python")} == {f"{name}.py" for name in EXAMPLES}
    kinds = ("optimizers", "problems", "samplers", "panels", "figures")
    assert set(project()["entry-points"]) == {f"kftune.{kind}" for kind in kinds}


def test_the_optimizer_lowers_the_problems_loss(package: dict[str, ModuleType]) -> None:
    problem = package["wine"].load(device=torch.device("cpu"), dtype=torch.float32, data_dir=Path())
    torch.manual_seed(0)
    model, entry = problem.make_model(), package["signum"].ENTRY
    optimizer = entry.build(model, likelihood=problem.likelihood, params=entry.example)

    def closure() -> tuple[torch.Tensor, torch.Tensor]:
        output = model(problem.train.inputs)
        return cross_entropy(output, problem.train.targets), output

    losses = [float(optimizer.step(closure)) for _ in range(N_UPDATES)]
    assert losses[-1] < 0.2 * losses[0]  # 0.05 observed
    for params, message in entry.invalid:
        with pytest.raises(ValueError, match=re.escape(message)):
            entry.build(model, likelihood=problem.likelihood, params=params)


def test_all_is_listed_and_described(installed: Path) -> None:
    names = {"optimizers": "signum", "problems": "wine_mlp", "samplers": "nearby"}
    for kind, name in (names | {"panels": "discovery", "figures": "discovery"}).items():
        assert name in [entry["name"] for entry in json.loads(kftune(installed, "list", kind, "--json"))]
    described = {kind: json.loads(kftune(installed, "describe", name, "--json")) for kind, name in names.items()}
    assert all(description["kind"] == kind.removesuffix("s") for kind, description in described.items())
    assert all(parameter["meaning"] for parameter in described["optimizers"]["parameters"])


def test_a_study_runs_on_all_of_them(installed: Path, package: dict[str, ModuleType]) -> None:
    (installed / "newcomer.yaml").write_text(STUDY)
    kftune(installed, "run", "newcomer.yaml")
    kftune(installed, "dashboard", "newcomer.yaml", "--out", "page.html")
    page = (installed / "page.html").read_text(encoding="utf-8")
    assert 'id="f0p0-discovery"' in page
    assert "When the best was found" in page
    assert "No trial has ended well yet." not in page
    kftune(installed, "figure", "discovery", "--out", "figure.html")
    assert "number of the best trial" in (installed / "figure.html").read_text(encoding="utf-8")
    study = optuna.load_study(study_name="newcomer/wine_mlp/signum", storage=f"sqlite:///{installed / 'newcomer.db'}")
    first, second = study.get_trials(deepcopy=False)
    space: dict[str, Any] = dict(package["signum"].ENTRY.space.dimensions)
    assert set(space) == set(first.params) == set(second.params)
    for name, dimension in space.items():
        assert isinstance(dimension, Float | Int)
        assert all(dimension.low <= trial.params[name] <= dimension.high for trial in (first, second))
        distribution = second.distributions[name]
        places = [to_unit(distribution, trial.params[name]) for trial in (first, second)]
        # The radius of the study file; batch sizes are rounded, by at most log(16.5/16) of log(142.5/15.5).
        assert abs(places[0] - places[1]) <= 0.2 + (0.015 if isinstance(dimension, Int) else 1e-12)
    assert first.params != second.params
