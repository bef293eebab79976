"""``kftune dashboard``, ``serve`` and ``figure`` as they are typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.cells import cell_len

from kftune.dashboard.server import bind
from tests.cli.conftest import Command


def test_a_dashboard_can_have_its_data_beside_it(kftune: Command, finished: Path) -> None:
    result = kftune("dashboard", "--csv", "data")
    assert result.out.splitlines() == [
        *("wrote dashboards/small.html", "wrote data/trials.csv", "wrote data/runs.csv", "wrote data/curves.csv")
    ]
    plain = json.loads(kftune("dashboard", "small", "--out", "x.html", "--csv", "d", "--json").out)
    assert plain == {"path": "x.html", "studies": ["small"], "csv": ["d/trials.csv", "d/runs.csv", "d/curves.csv"]}


def test_figures_are_listed_in_80_columns(kftune: Command) -> None:
    text = kftune("figure", "--list").out
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    listed = json.loads(kftune("figure", "--list", "--json").out)
    assert {"sorted-losses", "verdict", "slices"} <= {figure["name"] for figure in listed}
    assert all(figure["name"] in text for figure in listed)


def test_a_figure_is_written(kftune: Command, finished: Path) -> None:
    assert kftune("figure", "sorted-losses", "small", "--out", "f/x.html").out == "wrote f/x.html\n"
    page = (finished.parent / "f" / "x.html").read_text(encoding="utf-8")
    assert "share of the started trials" in page
    plain = json.loads(kftune("figure", "verdict", "-o", "v.html", "--json").out)
    assert plain == {"path": "v.html", "figure": "verdict", "study": "small"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure"], "needs a NAME and --out FILE"),
        (["figure", "verdict"], "needs a NAME and --out FILE"),
        (["figure", "verdikt", "--out", "x.html"], "unknown figure 'verdikt'; did you mean 'verdict'?"),
        (["figure", "verdict", "--out", "x.gif"], "must end with one of .png, .svg, .pdf, .html"),
        (["figure", "verdict", "nothing", "--out", "x.html"], "unknown study 'nothing'"),
        (["figure", "verdict", "--at", "1", "--out", "x.html"], "--at: verdict does not depend on the budget"),
        (
            ["figure", "sorted-losses", "--at", "1", "--out", "x.html"],
            "--at is in seconds, and the budget of small is not",
        ),
        (["figure", "verdict", "--problem", "x", "--out", "x.html"], "unknown problem 'x'"),
        (["serve", "nothing"], "unknown study 'nothing'"),
        (["serve", "--port", "70000"], "less than or equal to 65535"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_drawn_is_one_line(kftune: Command, finished: Path, arguments: list[str], message: str) -> None:
    before = sorted(path.name for path in finished.parent.iterdir())
    result = kftune(*arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert sorted(path.name for path in finished.parent.iterdir()) == before


def test_a_port_that_is_taken_is_one_line(kftune: Command, finished: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        result = kftune("serve", "--port", str(taken.getsockname()[1]))
    assert (result.code, result.out) == (2, "")
    assert "Address already in use; choose another with --port or --host" in result.err


def test_studies_of_one_name_are_refused_before_anything_listens(kftune: Command, finished: Path) -> None:
    shutil.copy(finished, finished.parent / "other.db")
    result = kftune("serve", finished.name, "other.db", "--port", "0")
    assert (result.code, result.out) == (2, "")
    assert "several of these databases hold a study file named 'small': show them apart" in result.err
