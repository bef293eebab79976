"""The verdict and the health of runs where confirming runs failed, and where an interval reaches below zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from kftune.analysis.stored.results import FileResults, load_results
from kftune.dashboard.figures.style import optimizer_styles
from kftune.dashboard.panels import PANELS, Subject
from kftune.dashboard.parts import Panel, Table
from kftune.results import CurvePoint, Outcome, RunResult
from kftune.storage.repository import Repository
from tests.dashboard.conftest import Watched, page_of, wait_until
from tests.dashboard.factory import OPTIMIZERS, make_database
from tests.storage.builders import run_record, run_result

Confirmed: TypeAlias = Mapping[str, Sequence[float | Outcome]]

PROBLEM = "fashion_mnist_mlp"
STEP = CurvePoint(train_seconds=60.0, update=10, train_loss=0.0, test_loss=0.0)


def ended(how: float | Outcome) -> RunResult:
    """A run that ends at a loss, or fails, saying so."""
    untrained = replace(STEP, train_seconds=0.0, update=0, train_loss=2.3, test_loss=2.3)
    if isinstance(how, Outcome):
        return run_result(outcome=how, curve=(untrained,), message=f"Traceback\nIt was {how.value} on a fresh seed")
    return run_result(curve=(untrained, replace(STEP, train_loss=how, test_loss=how)))


def make(path: Path, confirmed: Confirmed) -> FileResults:
    """A study of 9 trials, of which the best of each optimizer is confirmed with these losses."""
    url = f"sqlite:///{path}"
    make_database(url, problems=(PROBLEM,), optimizers={name: OPTIMIZERS[name] for name in confirmed}, n_trials=9)
    with Repository.open(url) as repository:
        (file,) = load_results(repository)
        for study in file.studies:
            best = study.ranked()[0]
            for repeat, how in enumerate(confirmed[study.record.optimizer]):
                record = run_record(
                    1, best.trial.number, repeat, study=study.record.study, params=best.params, result=ended(how),
                    purpose="confirm", seed=900 + repeat,
                )  # fmt: skip
                repository.add_run(record, session_ledger={})
        return load_results(repository)[0]


# Confirmed on 2 seeds: 0.1 and 0.9 have a 95 % interval from -4.58 to 5.58.
WIDE: Confirmed = {"sgd": [0.4, 0.41, 0.39], "kfac": [0.1, 0.9]}


def test_an_interval_that_reaches_below_zero_leaves_the_figure_at_both_ends(
    open_page: Callable[..., Watched], tmp_path: Path
) -> None:
    make(tmp_path / "wide.db", WIDE)
    page = open_page(page_of(tmp_path / "wide.db")).page
    page.locator(".panel.verdict .plot").first.scroll_into_view_if_needed()
    wait_until(page, "document.querySelector('.panel.verdict .plot').matches('.drawn')")
    bars = page.locator(".panel.verdict .plot .js-line")
    lengths = bars.evaluate_all("lines => lines.map((line) => line.getBoundingClientRect().width)")
    width = page.locator(".panel.verdict .plot .nsewdrag").first.evaluate("plot => plot.getBoundingClientRect().width")
    assert len(lengths) == 2
    assert max(lengths) >= 0.99 * width
    assert 0 < min(lengths) < 0.5 * width


def panel_of(file: FileResults, key: str) -> Panel:
    subject = Subject(file, PROBLEM, optimizer_styles(file.optimizers))
    return PANELS.get(key).make(subject)


def texts(table: Table, column: str) -> list[str]:
    place = [cell.text for cell in table.header].index(column)
    return [row[place].text for row in table.rows]


FAILED: Confirmed = {
    "sgd": [0.4, 0.41, 0.39],
    "kfac": [0.2, 0.21, Outcome.CRASHED],
    "adamw": [Outcome.CRASHED, Outcome.CRASHED],
}


def test_the_verdict_tells_of_confirming_runs_that_failed(tmp_path: Path) -> None:
    file = make(tmp_path / "failed.db", FAILED)
    table = panel_of(file, "verdict").parts[0]
    assert isinstance(table, Table)
    assert texts(table, "optimizer") == ["kfac", "sgd", "adamw"]
    assert texts(table, "seeds") == ["2 of 3", "3", "–"]
    failed = texts(table, "runs that failed")
    assert ["in confirming runs" in text for text in failed] == [True, False, True]
    assert failed[0].endswith("1 crashed in confirming runs")
    assert failed[2].endswith("2 crashed in confirming runs")


def test_the_target_is_set_by_the_confirmed_ones(tmp_path: Path) -> None:
    table = panel_of(make(tmp_path / "some.db", {**WIDE, "adamw": []}), "verdict").parts[0]
    assert isinstance(table, Table)
    (column,) = [cell.text for cell in table.header if cell.text.startswith("seconds to")]
    assert math.isclose(float(column.removeprefix("seconds to ")), 0.5)  # kfac's mean, the upper of two
    assert texts(table, column) == ["60", "60", "–"]


def test_health_counts_confirming_runs_that_failed_and_holds_what_they_said(tmp_path: Path) -> None:
    health = panel_of(make(tmp_path / "failed.db", FAILED), "health")
    tables = {part.caption: part for part in health.parts if isinstance(part, Table)}
    assert texts(tables["How the runs ended"], "confirming runs") == ["3", "3", "2"]
    confirming = tables["How the confirming runs ended"]
    assert [cell.text for cell in confirming.header] == ["problem", "optimizer", "completed", "crashed"]
    assert texts(confirming, "completed") == ["3", "2", "0"]
    assert texts(confirming, "crashed") == ["0", "1", "2"]
    said = tables["What failed runs said"]
    rows = [tuple(cell.text for cell in row) for row in said.rows]
    assert (f"thesis_cpu/{PROBLEM}/adamw", "confirm", "crashed", "2", "It was crashed on a fresh seed") in rows
