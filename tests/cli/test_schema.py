"""The schema of a study file on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import yaml

from kftune.study.config.schema import SCHEMA_FILE, study_schema
from tests.cli.conftest import Command


def test_the_command_prints_it_and_writes_it(kftune: Command, workdir: Path) -> None:
    printed = kftune("schema")
    assert printed.code == 0
    assert json.loads(printed.out) == study_schema()
    assert kftune("schema", "--out", "s.json").code == 0
    assert json.loads((workdir / "s.json").read_text()) == study_schema()
    assert kftune("schema", "--out", "nowhere/s.json").code == 2


def test_init_writes_the_line_for_editors_and_what_it_names(kftune: Command, workdir: Path) -> None:
    assert kftune("init", "mine.yaml").code == 0
    first, *_ = (workdir / "mine.yaml").read_text().splitlines()
    assert first == f"# yaml-language-server: $schema={SCHEMA_FILE}"
    schema = json.loads((workdir / SCHEMA_FILE).read_text())
    jsonschema.Draft7Validator(schema).validate(yaml.safe_load((workdir / "mine.yaml").read_text()))
