"""The page as text; what it looks like is tested in a browser."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from kftune.analysis.results import FileResults
from kftune.dashboard import formatting
from kftune.dashboard.figures._style import optimizer_styles
from kftune.dashboard.header import make_header
from kftune.dashboard.page import _json, render_page, write_page
from kftune.dashboard.panels import outcomes_panel, problem_panels
from kftune.errors import UnknownNameError, UsageError
from kftune.storage.repository import Repository
from tests.dashboard.factory import STARTED_AT, make_database


def test_it_is_one_file_that_needs_no_other(file: FileResults) -> None:
    text = render_page([file], database="results.db")
    assert len(text.encode()) < 10e6
    assert text.count("plotly.js v") == 1
    without_scripts = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "://" not in without_scripts
    assert re.findall(r"\b(?:src|href)=", without_scripts) == []


def test_it_is_written_whole_or_not_at_all(studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "directory" / "page.html"
    with Repository.open(f"sqlite:///{studied}", read_only=True) as repository:
        assert write_page(repository, out=out) == out
        first = out.read_text(encoding="utf-8")
        assert first.endswith("</html>\n")
        assert f"Made by kftune from {studied.name}." in first
        assert str(studied.parent) not in first

        def full(self: Path, target: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(UsageError, match=r"cannot write .*page\.html: No space left on device"):
            write_page(repository, out=out)
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert out.read_text(encoding="utf-8") == first


def test_what_cannot_be_written_or_found_is_said(studied: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Repository.open(f"sqlite:///{studied}", read_only=True) as repository:
        with pytest.raises(UsageError, match="cannot write"):
            write_page(repository, out=tmp_path / "file" / "page.html")
        with pytest.raises(UsageError, match="cannot write"):
            write_page(repository, out=tmp_path)
        with pytest.raises(UnknownNameError, match="unknown study 'nowhere'"):
            write_page(repository, file_names=["nowhere"], out=tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_come_in_the_order_asked_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'results.db'}"
    for name in ("first", "second", "third"):
        make_database(url, name=name, problems=("digits_mlp",), n_trials=1)
    with Repository.open(url, read_only=True) as repository:
        text = write_page(repository, file_names=["third", "first"], out=tmp_path / "page.html").read_text("utf-8")
    assert re.findall(r"<h1>(\w+)", text) == ["third", "first"]
    assert "<title>third, first · kftune</title>" in text


def test_an_empty_database_has_a_page(tmp_path: Path) -> None:
    with Repository.open(f"sqlite:///{tmp_path / 'results.db'}") as repository:
        text = write_page(repository, out=tmp_path / "page.html").read_text("utf-8")
    assert "The database holds no study." in text


def test_json_cannot_end_its_script() -> None:
    value = {"</script><!--": ["<b>", "&amp;", "\u2028", "ü"]}
    text = str(_json(value))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_the_header_says_what_was_run_on_what(file: FileResults) -> None:
    header = make_header(file)
    facts = {fact.name: fact.value for fact in header.facts}
    assert facts["problems"] == "mnist_autoencoder, fashion_mnist_mlp"
    assert facts["optimizers"] == "sgd, adamw, kfac"
    assert facts["budget of a run"] == "60 s of training"
    assert facts["trials per optimizer"] == "14, 5 of them at random"
    assert facts["runs made"] == str(3 * 2 * 14 * 2)
    assert facts["devices"] == "cpu (AMD EPYC 7763 64-Core Processor)"
    assert facts["host"] == "node17"
    assert facts["ran"].startswith("2026-03-01 08:30 UTC to ")
    assert "torch 2.13.0" in facts["versions"]
    assert (header.state, header.is_complete) == ("complete", True)
    assert sum(share.percent for share in header.shares) == pytest.approx(100)
    # The factory's sessions last 1.05 times as long as their runs, less 0.02 s in each of them.
    overhead = header.shares[-1]
    assert overhead.kind == "overhead"
    assert overhead.percent == pytest.approx(100 * 0.05 / 1.05, abs=0.3)


def test_tables_hold_what_was_found(file: FileResults) -> None:
    panels = {panel.key: panel for panel in problem_panels(file, file.problems[0], optimizer_styles(file.optimizers))}
    kfac = panels["best-configurations"].tables[2]
    assert (kfac.optimizer, kfac.note) == ("kfac", "fixed: fisher = mc, inverses_every = 10")
    assert [cell.text for cell in kfac.header] == [
        *("rank", "test loss", "over repeats", "lr", "kl_clip", "statistics_every", "batch_size", "damping"),
        *("updates", "trial", "runs"),
    ]
    assert len(kfac.rows) == 4
    best = file.of_problem(file.problems[0])[2].ranked()[0]
    assert kfac.rows[0][1].text == formatting.loss(best.trial.value or 0)
    assert kfac.rows[0][3].text == formatting.number(best.params["lr"])
    outcomes = outcomes_panel(file).tables[0]
    for row, study in zip(outcomes.rows, file.studies, strict=True):
        assert sum(int(cell.text) for cell in row[3:8]) == len(study.runs)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0136, "0.0136"),
        (1.2e-5, "1.2e-5"),
        (123456.0, "1.235e5"),
        (1.0, "1"),
        (3, "3"),
        (None, "–"),
        (True, "True"),
        ("mc", "mc"),
        (float("nan"), "nan"),
        (0.1 + 0.2, "0.3"),
    ],
)
def test_numbers(value: object, text: str) -> None:
    assert formatting.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0237, "0.02370"), (2.0, "2.000"), (1234.0, "1234"), (1e-6, "1e-6"), (12345678.0, "1.235e7"), (0.0, "0")],
)
def test_losses(value: float, text: str) -> None:
    assert formatting.loss(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.347, "0.35 s"),
        (48.4, "48.4 s"),
        (59.99, "1 min"),
        (60, "1 min"),
        (725, "12 min 5 s"),
        (3599.9, "1 h"),
        (12_000, "3 h 20 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (0.0004, "< 0.1 %"), (0.048, "4.8 %"), (0.934, "93 %"), (1.0, "100 %")]
)
def test_shares(share: float, text: str) -> None:
    assert formatting.percent(share) == text


def test_times_are_in_utc() -> None:
    tokyo = datetime(2026, 1, 1, 9, 30, tzinfo=timezone(timedelta(hours=9)))
    assert formatting.clock_time(tokyo) == "2026-01-01 00:30 UTC"
    assert STARTED_AT.tzinfo is UTC
