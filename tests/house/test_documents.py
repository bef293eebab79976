"""What the pages show is so: study files are valid, programs run, commands exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

import kftune
from kftune._targets import importable_from
from kftune.cli._app import app
from kftune.study.config import config_from_dict, load_config, make_plans
from kftune.study.config.schema import study_schema
from tests.house.pages import QUICKSTART, ROOT, blocks, page_id, pages, write_files

PAGES = pages()
SMALL = (
    "budget={updates: 2}",
    "trials=2",
    "repeats=1",
    "startup_trials=1",
    "sampler=random",
    "devices=cpu",
    "threads=1",
)
_LINK = re.compile(r"(?<!\\)\]\(([^)#\s]+)(?:#[^)]*)?\)")


def with_blocks(*languages: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, *languages)]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(study_schema())


@pytest.fixture
def quickstart() -> Any:
    (shown, *_) = blocks(QUICKSTART, "yaml")
    return yaml.safe_load(shown.text)


@pytest.mark.parametrize("page", with_blocks("yaml", "yml"), ids=page_id)
def test_every_study_file_is_one(
    page: Path, tmp_path: Path, quickstart: Any, validator: jsonschema.Draft7Validator
) -> None:
    """By the schema and by the loader; a part of one stands for the quickstart with these keys."""
    write_files(page, tmp_path)
    for block in blocks(page, "yaml", "yml"):
        shown = yaml.safe_load(block.text)
        whole = shown if "problems" in shown else quickstart | shown
        validator.validate(whole)
        make_plans(config_from_dict(whole, page.name, directory=tmp_path))
        stated = config_from_dict(whole, page.name, directory=tmp_path).to_dict()
        assert shown.keys() <= stated.keys()


def test_the_tutorials_study_is_the_quickstart(quickstart: Any) -> None:
    assert config_from_dict(quickstart, "tutorial.md") == load_config(ROOT / "studies" / "quickstart.yaml")


def test_the_rarer_keys_mean_what_they_say(quickstart: Any) -> None:
    (rarer,) = (yaml.safe_load(block.text) for block in blocks(ROOT / "docs" / "reference" / "study-file.md", "yaml"))
    config = config_from_dict(quickstart | rarer, "study-file.md")
    assert config.to_dict()["budget"] == rarer["budget"]
    assert [start.source for start in config.warm_start] == ["other", "old.db#mnist"]


@pytest.mark.parametrize(
    "page", [page for page in with_blocks("py", "python") if page.name != "CONTRIBUTING.md"], ids=page_id
)
def test_every_program_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly what a reader would paste, in order; studies with a small budget."""
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    in_small(monkeypatch)
    names: dict[str, Any] = {}
    before = set(sys.modules)
    with importable_from(tmp_path):
        for block in blocks(page, "py", "python"):
            if block.file is None:
                exec(block.text, names)
    for name in [name for name in sys.modules if name not in before and (tmp_path / f"{name}.py").exists()]:
        del sys.modules[name]
    if isinstance(names.get("study"), kftune.Study) and "results" in names:
        optimizers = [item.name for item in names["study"].config.optimizers]
        runs = names["results"].runs()
        assert set(runs["optimizer"]) == set(optimizers)
        assert set(runs["outcome"]) == {"completed"}
        assert all(study.confirmations for study in names["study"].results().file.studies)
    if "loss" in names:
        assert float(names["loss"]) < 1.0  # from ln 5 = 1.6 on random labels
        assert (tmp_path / "optimizer.pt").exists()
    capsys.readouterr()


def in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies from Python get the smallest budget, and confirm the least."""
    make, confirm = kftune.Study.__init__, kftune.Study.confirm

    def made(self: kftune.Study, *args: Any, **keys: Any) -> None:
        make(self, *args, overrides=SMALL, **keys)

    def confirmed(self: kftune.Study, **how: Any) -> kftune.Results:
        return confirm(self, **how | {"top": 1, "seeds": 1, "progress": False})

    monkeypatch.setattr(kftune.Study, "__init__", made)
    monkeypatch.setattr(kftune.Study, "confirm", confirmed)


def commands_of(page: Path) -> list[list[str]]:
    """The command lines of kftune on a page, also within sentences."""
    lines = [line for block in blocks(page, "console") for line in block.text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(kftune [^`]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    found = [shlex.split(" ".join(line.split()), comments=True) for line in lines]
    return [words[1:] for words in found if words[:1] == ["kftune"] and len(words) > 1]


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=page_id)
def test_every_command_and_option_exists(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for name, *rest in commands_of(page):
        assert name in group.commands, name
        command = group.commands[name]
        if hasattr(command, "commands"):
            assert rest[0] in command.commands, rest
            command = command.commands[rest[0]]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known, (name, rest)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files(page: Path) -> None:
    targets = [link for link in _LINK.findall(page.read_text()) if "://" not in link]
    is_made = "gallery/index.rst"
    assert [link for link in targets if link != is_made and not (page.parent / link).exists()] == []


def test_the_readme_is_two_screens_and_names_the_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 170
    targets = (ROOT / "Makefile").read_text()
    for name in ("demo", "test", "test-all", "docs"):
        assert f"make {name}" in text
        assert re.search(rf"^{name}:", targets, re.MULTILINE)
