"""A problem, a panel and a figure of another package, a file each: found, listed, and held to what ours must do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROBLEM = '''
import functools

import torch
from torch import nn
from torch.nn.functional import mse_loss

from kftune.problems import Problem, ProblemEntry, Split


def load(*, device, dtype, data_dir):
    """A plane in three dimensions, with noise."""
    made = torch.Generator().manual_seed(0)
    inputs = torch.rand(300, 3, generator=made)
    targets = inputs.sum(dim=1, keepdim=True) + 0.1 * torch.randn(300, 1, generator=made)
    inputs, targets = (tensor.to(device=device, dtype=dtype) for tensor in (inputs, targets))
    return Problem(
        name="plane_linear",
        likelihood="gaussian",
        make_model=functools.partial(nn.Linear, 3, 1),
        loss=mse_loss,
        train=Split(inputs[:200], targets[:200]),
        test=Split(inputs[200:], targets[200:]),
    )


ENTRY = ProblemEntry(
    name="plane_linear", load=load, summary="a plane with noise", source="made up", n_train=200, n_test=100
)
'''

PANEL = '''
from kftune.dashboard.panels import PanelEntry, Subject
from kftune.dashboard.parts import Cell, Panel, Table, name_of


def trials_panel(subject: Subject) -> Panel:
    """How many trials each optimizer has."""
    header = [Cell("optimizer", "text"), Cell("trials")]
    rows = [[name_of(study.record.optimizer), Cell(str(len(study.finished)))] for study in subject.studies]
    return Panel(key="trials", title="Trials", sentence="How many were finished.", parts=[Table(header, rows)])


ENTRY = PanelEntry(name="trials", summary="how many trials there are", scope="problem", place=15, make=trials_panel)
'''

FIGURE = '''
import plotly.graph_objects as go

from kftune.dashboard.figures import FigureEntry
from kftune.dashboard.figures.style import layout


def plot_trials(request):
    """How many trials each optimizer has."""
    studies = request.file.of_problem(request.problem)
    bars = go.Bar(x=[s.record.optimizer for s in studies], y=[len(s.finished) for s in studies])
    return go.Figure(bars, layout(x_title="optimizer", y_title="trials"))


ENTRY = FigureEntry(name="n-trials", scope="problem", sentence="how many trials there are", place=15, plot=plot_trials)
'''

ADDITIONS = {
    "problems": ("plane_linear", PROBLEM, "tests/problems/test_problems.py"),
    "panels": ("trials", PANEL, "tests/dashboard/test_panel_contract.py"),
    "figures": ("n-trials", FIGURE, "tests/dashboard/test_figures.py"),
}


def with_additions(directory: Path) -> dict[str, str]:
    """An environment in which a package with all of them is installed."""
    info = directory / "newcomer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: newcomer\nVersion: 1.0\n")
    points = []
    for kind, (_, source, _) in ADDITIONS.items():
        (directory / f"newcomer_{kind}.py").write_text(source)
        points.append(f"[kftune.{kind}]\nit = newcomer_{kind}:ENTRY\n")
    (info / "entry_points.txt").write_text("\n".join(points))
    paths = [str(directory), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


LIST = """
import sys
from kftune.cli import main
for kind in sys.argv[1:]:
    main(["list", kind, "--json"])
    print("---")
"""


def test_one_file_is_found_listed_and_held_to_the_shared_tests(tmp_path: Path) -> None:
    environment = with_additions(tmp_path)
    names = {kind: name for kind, (name, _, _) in ADDITIONS.items()}
    listed = subprocess.run(
        [sys.executable, "-c", LIST, *ADDITIONS],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for kind, text in zip(ADDITIONS, listed.stdout.split("---"), strict=False):
        found = [entry["name"] for entry in json.loads(text)]
        assert names[kind] in found
        if kind != "problems":
            assert found.index(names[kind]) == 1  # its place is 15: behind the first
    suites = [suite for _, _, suite in ADDITIONS.values()]
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", *suites, "-k", " or ".join(f"[{name}]" for name in names.values()),
         "-p", "no:cacheprovider", "-vv"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout
    assert all(f"[{name}] PASSED" in tested.stdout for name in names.values()), tested.stdout
