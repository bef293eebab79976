"""CONTRIBUTING.md: its drawing is of the layers as they are, and its examples do what it says of them."""

from __future__ import annotations

import importlib
import importlib.util
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
from tests.processes import warm

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PACKAGE = "newcomer"
EXAMPLES = {"signum", "wine", "nearby", "discovery"}
N_UPDATES = 50
STUDY = f"""
name: {PACKAGE}
problems: [wine_mlp]
optimizers: [signum, sgd]
sampler: {{name: nearby, radius: 0.2}}
budget: {{updates: 30}}
repeats: 1
trials: 2
startup_trials: 1
storage: sqlite:///{PACKAGE}.db
devices: cpu
threads: 1
"""


def drawer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_layers", ROOT / "tools" / "draw_layers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def layers() -> ModuleType:
    return drawer()


def test_the_drawing_is_of_the_layers_as_they_are(layers: ModuleType) -> None:
    drawing = layers.draw(layers.boxes_of((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    assert layers.with_drawing(PAGE, drawing) == PAGE, (
        "The layers of pyproject.toml have changed: run `python tools/draw_layers.py` and commit CONTRIBUTING.md."
    )


def test_every_layer_of_every_contract_is_drawn() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = [layer for contract in contracts if contract["type"] == "layers" for layer in contract["layers"]]
    drawing = PAGE.partition("```text\n")[2].partition("```")[0]
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


def test_contracts_become_boxes(layers: ModuleType) -> None:
    assert layers.draw(layers.boxes_of(CONTRACTS)) == DRAWN
    assert layers.draw(layers.boxes_of("")) == ""


def test_the_script_writes_and_checks(
    layers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layers, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text(CONTRACTS, encoding="utf-8")
    page = tmp_path / "CONTRIBUTING.md"
    page.write_text(f"before\n{layers.BEGIN}\nold\n{layers.END}\nafter\n", encoding="utf-8")
    assert layers.main(["--check"]) == 1
    assert "old" in page.read_text(encoding="utf-8")
    assert layers.main([]) == 0
    expected = f"before\n{layers.BEGIN}\n```text\n{DRAWN}\n```\n{layers.END}\nafter\n"
    assert page.read_text(encoding="utf-8") == expected
    assert layers.main(["--check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "CONTRIBUTING.md: the drawing is out of date",
        "CONTRIBUTING.md: the drawing is up to date",
    ]


@pytest.mark.parametrize("text", ["", "{begin}", "{end}{begin}", "{begin}{begin}{end}", "{begin}{end}{end}"])
def test_without_its_markers_nothing_is_written(layers: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="must stand in the text, once each and in this order"):
        layers.with_drawing(text.format(begin=layers.BEGIN, end=layers.END), "drawing")


def blocks(language: str) -> dict[str, str]:
    """File name, from its first line → code block of the page."""
    found = re.findall(rf"^```{language}\n# (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return dict(found)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's package is installed, as its pyproject.toml says."""
    directory = tmp_path_factory.mktemp("site")
    (directory / PACKAGE).mkdir()
    (directory / PACKAGE / "__init__.py").write_text("")
    for name, source in blocks("python").items():
        (directory / name).write_text(source, encoding="utf-8")
    project = tomllib.loads(blocks("toml")["pyproject.toml"])["project"]
    info = directory / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return directory


@pytest.fixture
def package(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The page's modules, imported."""
    monkeypatch.syspath_prepend(installed)
    yield {name: importlib.import_module(f"{PACKAGE}.{name}") for name in EXAMPLES}
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def kftune(directory: Path, *arguments: str) -> str:
    paths = [str(directory), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = warm.run([sys.executable, "-m", "kftune", *arguments], env=environment, cwd=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_an_example_of_each() -> None:
    assert set(blocks("python")) == {f"{PACKAGE}/{name}.py" for name in EXAMPLES}
    assert set(tomllib.loads(blocks("toml")["pyproject.toml"])["project"]["entry-points"]) == {
        f"kftune.{kind}" for kind in ("optimizers", "problems", "samplers", "panels", "figures")
    }


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
    (installed / f"{PACKAGE}.yaml").write_text(STUDY)
    kftune(installed, "run", f"{PACKAGE}.yaml")
    kftune(installed, "dashboard", f"{PACKAGE}.yaml", "--out", "page.html")
    page = (installed / "page.html").read_text(encoding="utf-8")
    assert 'id="f0p0-discovery"' in page
    assert "When the best was found" in page
    assert "No trial has ended well yet." not in page
    kftune(installed, "figure", "discovery", "--out", "figure.html")
    assert "number of the best trial" in (installed / "figure.html").read_text(encoding="utf-8")
    study = optuna.load_study(
        study_name=f"{PACKAGE}/wine_mlp/signum", storage=f"sqlite:///{installed / f'{PACKAGE}.db'}"
    )
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
