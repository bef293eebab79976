"""Figures as files, and tables."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from kftune.analysis.stored.results import FileResults
from kftune.dashboard.export import make_request, write_figure
from kftune.dashboard.figures import FIGURES
from kftune.dashboard.tables import write_tables
from kftune.errors import UnknownNameError, UsageError
from tests.dashboard.conftest import Watched, wait_until

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="drawn by Chromium")


def draw(file: FileResults, name: str, out: Path, **about: str) -> Path:
    problem = about.pop("problem", file.problems[0])
    return write_figure(name, make_request(name, file, problem=problem, **about), out=out, database="results.db")


@needs_browser
def test_a_png_has_its_legend_on_white_paper(confirmed: FileResults, tmp_path: Path) -> None:
    with Image.open(draw(confirmed, "sorted-losses", tmp_path / "x" / "a.png")) as picture:
        assert picture.size == (2 * 760, 2 * 440)
        assert picture.convert("RGB").getpixel((3, 3)) == (255, 255, 255)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20) or []}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)} <= colours


@needs_browser
def test_svg_and_pdf_are_vectors_and_ask_nobody(confirmed: FileResults, tmp_path: Path) -> None:
    svg = draw(confirmed, "verdict", tmp_path / "a.svg").read_text("utf-8")
    assert svg.startswith("<svg")
    assert "<image" not in svg
    assert "<script" not in svg
    assert "adamw" in svg
    assert draw(confirmed, "slices", tmp_path / "a.pdf", optimizer="kfac").read_bytes().startswith(b"%PDF")


def test_html_is_a_page_with_one_figure(confirmed: FileResults, tmp_path: Path, open_page: object) -> None:
    out = draw(confirmed, "sorted-losses", tmp_path / "a.html")
    assert callable(open_page)
    watched = open_page(out)
    assert isinstance(watched, Watched)
    assert watched.page.locator(".plot.drawn .trace").count() == 3
    watched.page.locator(".legend").get_by_role("button", name="sgd").click()
    wait_until(watched.page, "document.querySelectorAll('.plot .trace').length === 2")


def test_a_place_of_the_budget_slider(confirmed: FileResults, tmp_path: Path) -> None:
    request = make_request("sorted-losses", confirmed, problem="fashion_mnist_mlp", at=15)
    page = write_figure("sorted-losses", request, out=tmp_path / "a.html", database="x").read_text("utf-8")
    assert "test loss after 15 s" in page
    request = make_request("best-over-budget", confirmed, problem="fashion_mnist_mlp", at=15)
    figure = FIGURES.get("best-over-budget").plot(request)
    assert figure is not None
    assert [shape.x0 for shape in figure.layout.shapes] == [15]
    for outside in (0.0, 60.1):
        with pytest.raises(UsageError, match="--at must be above 0 and at most the budget, 60 seconds, got"):
            make_request("sorted-losses", confirmed, problem="fashion_mnist_mlp", at=outside)
    in_updates = [replace(s, record=replace(s.record, config=dict(s.record.config) | {"budget": {"updates": 9}}))
                  for s in confirmed.studies]  # fmt: skip
    with pytest.raises(UsageError, match="--at is in seconds, and the budget of thesis_cpu is not"):
        make_request("sorted-losses", replace(confirmed, studies=tuple(in_updates)), problem="fashion_mnist_mlp", at=1)


def test_what_is_meant_must_be_said_where_there_is_a_choice(confirmed: FileResults) -> None:
    with pytest.raises(UnknownNameError, match="unknown figure 'sorted-loses'; did you mean 'sorted-losses'"):
        make_request("sorted-loses", confirmed)
    with pytest.raises(UsageError, match=r"choose one with --problem .*: mnist_autoencoder, fashion_mnist_mlp"):
        make_request("sorted-losses", confirmed)
    with pytest.raises(UsageError, match="choose one with --optimizer"):
        make_request("slices", confirmed, problem="fashion_mnist_mlp")
    with pytest.raises(UnknownNameError, match="unknown optimizer 'kfak'; did you mean 'kfac'"):
        make_request("slices", confirmed, problem="fashion_mnist_mlp", optimizer="kfak")
    with pytest.raises(UsageError, match=r"choose one with --of .*available: lr,damping/lr, lr,batch_size"):
        make_request("map", confirmed, problem="fashion_mnist_mlp", optimizer="kfac")
    assert make_request("machine", confirmed).problem == confirmed.problems[0]


def test_no_figure_without_data_format_or_browser(
    confirmed: FileResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"must end with one of \.png, \.svg, \.pdf, \.html"):
        draw(confirmed, "verdict", tmp_path / "a.bmp")
    with pytest.raises(UsageError, match="has nothing to draw yet as 'accuracy-against-seconds'"):
        draw(confirmed, "accuracy-against-seconds", tmp_path / "a.html")  # the autoencoder has none
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setattr("choreographer.browsers.chromium.Chromium.find_browser", lambda *_, **__: None)
    with pytest.raises(
        UsageError, match=r"no Chromium or Chrome was found \(set BROWSER_PATH to one, or write \.html\)"
    ):
        draw(confirmed, "verdict", tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


def test_tables_hold_every_run_and_point(confirmed: FileResults, tmp_path: Path) -> None:
    written = write_tables([confirmed], tmp_path / "csv")
    assert [path.name for path in written] == ["trials.csv", "runs.csv", "curves.csv"]
    trials, runs, points = (pd.read_csv(path) for path in written)
    n_trials = sum(len(study.trials) for study in confirmed.studies)
    all_runs = [run for study in confirmed.studies for run in (*study.runs, *study.confirmations)]
    assert len(trials) == n_trials
    assert len(runs) == len(all_runs)
    assert len(points) == sum(len(run.result.curve) for run in all_runs)
    assert runs["train_seconds"].sum() == pytest.approx(sum(run.result.train_seconds for run in all_runs), rel=1e-12)
