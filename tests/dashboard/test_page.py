"""The page as text; what it looks like is tested in a browser."""

import base64
import itertools
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml
from plotly.offline import get_plotlyjs_version

from kftune import wording as formatting
from kftune.analysis.stored.results import FileResults
from kftune.analysis.trust.confirmed import confirmed_results
from kftune.dashboard.encoding import json_markup, packed
from kftune.dashboard.figures.style import optimizer_styles
from kftune.dashboard.header import make_header
from kftune.dashboard.page import render_page, write_page
from kftune.dashboard.panels import Subject, panels_of
from kftune.dashboard.panels.health import _without_directories
from kftune.dashboard.parts import Bar, Chooser, Missing, Panel, Source, Table
from kftune.errors import UnknownNameError, UsageError
from kftune.storage.repository import Repository
from tests.dashboard.factory import STARTED_AT, make_database


def test_it_is_one_file_that_needs_no_other(file: FileResults) -> None:
    text = render_page([file], database="results.db")
    assert len(text.encode()) < 10e6
    assert text.count("plotly.js (basic - minified) v") == 1
    without_scripts = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "://" not in without_scripts
    assert re.findall(r"\bsrc=", without_scripts) == []
    linked = re.findall(r"\bhref=\"([^\"]*)", without_scripts)
    assert linked[0] == "data:,"  # no icon is asked for
    assert all(re.search(f'id="{re.escape(to[1:])}"', text) for to in linked[1:])  # places on the page itself


def test_it_is_written_whole_or_not_at_all(studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "directory" / "page.html"
    source = {f"sqlite:///{studied}": None}
    assert write_page(source, out=out) == ["thesis_cpu"]
    first = out.read_text(encoding="utf-8")
    assert first.endswith("</html>\n")
    assert f"Made by kftune from {studied.name}." in first
    assert str(studied.parent) not in first

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UsageError, match=r"cannot write .*page\.html: No space left on device"):
        write_page(source, out=out)
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert out.read_text(encoding="utf-8") == first


def test_what_cannot_be_written_or_found_is_said(studied: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    url = f"sqlite:///{studied}"
    with pytest.raises(UsageError, match="cannot write"):
        write_page({url: None}, out=tmp_path / "file" / "page.html")
    with pytest.raises(UsageError, match="cannot write"):
        write_page({url: None}, out=tmp_path)
    with pytest.raises(UnknownNameError, match="unknown study 'nowhere'"):
        write_page({url: ["nowhere"]}, out=tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_come_in_the_order_asked_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'results.db'}"
    for name in ("first", "second", "third"):
        make_database(url, name=name, problems=("digits_mlp",), n_trials=1)
    write_page({url: ["third", "first"]}, out=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert re.findall(r"<h1>(\w+)", text) == ["third", "first"]
    assert "<title>third, first · kftune</title>" in text


def test_studies_of_two_databases_stand_on_one_page_unless_they_have_one_name(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path / name}" for name in ("a.db", "b.db", "c.db")]
    for url, name in zip(urls, ("one", "two", "one"), strict=True):
        make_database(url, name=name, problems=("digits_mlp",), n_trials=1)
    assert write_page({urls[0]: None, urls[1]: ["two"]}, out=tmp_path / "page.html") == ["one", "two"]
    assert "Made by kftune from a.db, b.db." in (tmp_path / "page.html").read_text("utf-8")
    with pytest.raises(UsageError, match="several of these databases hold a study file named 'one'"):
        write_page({urls[0]: None, urls[2]: None}, out=tmp_path / "other.html")


def test_an_empty_database_has_a_page(tmp_path: Path) -> None:
    with Repository.open(f"sqlite:///{tmp_path / 'results.db'}"):
        pass
    write_page({f"sqlite:///{tmp_path / 'results.db'}": None}, out=tmp_path / "page.html")
    assert "The database holds no study." in (tmp_path / "page.html").read_text("utf-8")


def test_json_cannot_end_its_script() -> None:
    value = {"</script><!--": ["<b>", "&amp;", "\u2028", "ü"]}
    text = str(json_markup(value))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


def test_what_json_has_no_number_for_is_null() -> None:
    assert json.loads(json_markup({"a": [float("nan"), float("inf"), np.float32(1.5)]})) == {"a": [None, None, 1.5]}


def test_arrays_are_packed_as_plotly_takes_them() -> None:
    made = packed(np.array([1.5, -2.0], dtype=np.float32))
    assert made["dtype"] == "f4"
    assert np.frombuffer(base64.b64decode(made["bdata"]), dtype="<f4").tolist() == [1.5, -2.0]


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
    # The factory's sessions last 1.05 times as long as their runs, 0.032 of them in the sampler.
    shares = {share.kind: share.percent for share in header.shares}
    assert shares["sampling"] == pytest.approx(100 * 0.032 / 1.05, abs=0.1)


def made_panels(file: FileResults) -> dict[str, Panel]:
    subject = Subject(file, file.problems[0], optimizer_styles(file.optimizers))
    return {entry.name: entry.make(subject) for entry in (*panels_of("problem"), *panels_of("file"))}


def test_every_panel_says_what_to_see(file: FileResults) -> None:
    panels = made_panels(file)
    assert list(panels) == [
        *("verdict", "sorted-losses", "learning-curves", "budget", "tunability", "hyperparameters", "batch-size"),
        *("anatomy", "across-problems", "health"),
    ]
    assert all(panel.sentence.endswith(".") and panel.parts for panel in panels.values())


def test_tables_hold_what_was_found(file: FileResults) -> None:
    panels = made_panels(file)
    (chooser,) = panels["hyperparameters"].parts
    assert isinstance(chooser, Chooser)
    assert [choice.name for choice in chooser.choices] == ["sgd", "adamw", "kfac"]
    kfac = chooser.choices[2].parts[0]
    assert isinstance(kfac, Table)
    assert (kfac.optimizer, kfac.note) == ("kfac", "fixed: fisher = mc, inverses_every = 10")
    assert [cell.text for cell in kfac.header] == [
        *("rank", "test loss", "over repeats", "lr", "kl_clip", "statistics_every", "batch_size", "damping"),
        *("updates", "trial", "runs"),
    ]
    assert len(kfac.rows) == 4
    best = file.of_problem(file.problems[0])[2].ranked()[0]
    assert kfac.rows[0][1].text == formatting.loss(best.trial.value or 0)
    assert kfac.rows[0][3].text == formatting.number(best.params["lr"])
    outcomes, bar, *_, source = panels["health"].parts
    assert isinstance(outcomes, Table)
    assert isinstance(bar, Bar)
    assert isinstance(source, Source)
    for row, study in zip(outcomes.rows, file.studies, strict=True):
        assert sum(int(cell.text) for cell in row[3:8]) == len(study.runs)
    assert yaml.safe_load(source.text) == file.config


def test_the_verdict_ranks_by_confirmed_losses_and_says_who_beats_whom(confirmed: FileResults) -> None:
    verdict = made_panels(confirmed)["verdict"]
    table, _, pairs = verdict.parts
    assert isinstance(table, Table)
    assert isinstance(pairs, Table)
    column = [cell.text for cell in table.header].index("confirmed test loss")
    values = [float(row[column].text) for row in table.rows]
    assert values == sorted(values)
    problem = confirmed.problems[0]
    found = {each.optimizer: each for each in confirmed_results(confirmed) if each.problem == problem}
    assert sorted(each.mean for each in found.values()) == pytest.approx(values, rel=1e-3)
    matrix = {row[0].text: row[1:] for row in pairs.rows}
    for name, other in itertools.permutations(matrix, 2):
        seeds = [(a, b) for a, b in zip(found[name].values, found[other].values, strict=True) if a and b]
        won = sum(a < b for a, b in seeds) / len(seeds)
        assert matrix[name][list(matrix).index(other)].text.removesuffix(" *") == formatting.percent(won)


def test_without_confirmation_the_verdict_says_what_would_give_one(file: FileResults) -> None:
    verdict = made_panels(file)["verdict"]
    assert "`kftune confirm`" in verdict.sentence
    table, _, missing = verdict.parts
    assert isinstance(table, Table)
    assert "confirmed test loss" not in [cell.text for cell in table.header]
    assert isinstance(missing, Missing)
    assert "`kftune confirm`" in missing.text


def test_directories_of_a_command_are_not_shown() -> None:
    command = "kftune run /home/me/studies/a.yaml --storage=sqlite:////data/x.db --set 'a/b=1'"
    assert _without_directories(command) == "kftune run a.yaml --storage=x.db --set 'b=1'"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0136, "0.0136"),
        (1.2e-5, "1.2e-5"),
        (123456.7, "1.235e5"),
        (2000.0, "2000"),
        (3e7, "3e7"),
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


def test_the_bundle_is_that_of_the_plotly_whose_figures_it_draws() -> None:
    """A new plotly needs a new plotly-basic.min.js (npm's plotly.js-basic-dist-min)."""
    bundle = resources.files("kftune.dashboard").joinpath("vendor", "plotly-basic.min.js").read_text("utf-8")
    assert f"(basic - minified) v{get_plotlyjs_version()}\n" in bundle[:100]
