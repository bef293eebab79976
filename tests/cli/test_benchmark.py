"""``kftune benchmark samplers``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kftune.cli import main

SMALL = ["--samplers", "tpe,random", "--functions", "sgd", "--seeds", "2", "--trials", "10"]


def test_tables_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samplers.md"
    assert main(["benchmark", "samplers", *SMALL, "--observations", "10,20", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 80
    assert "Seconds per suggestion" in shown
    text = out.read_text()
    assert "kftune benchmark samplers --samplers tpe,random --functions sgd --seeds 2 --trials 10 --obs" in text
    assert "| sampler | 10 | 20 |" in text
    assert "## Regret in % after 10 trials" in text
    assert "optuna 5" in text


def test_json_and_what_was_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = tmp_path / "kept.jsonl"
    command = ["benchmark", "samplers", *SMALL, "--observations", "0", "--keep", str(keep), "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["timings"] == []
    assert [(r["contestant"], r["seed"]) for r in first["regrets"]] == [
        ("tpe", 0), ("tpe", 1), ("random", 0), ("random", 1)
    ]  # fmt: skip
    assert set(first["ranks"]) == {"tpe", "random"}
    assert first["comparisons"][0]["other"] == "random"
    lines = keep.read_text().splitlines()
    assert len(lines) == 4
    # What is kept is believed, and only the rest is made.
    changed = [json.loads(line) for line in lines[:3]]
    changed[0]["regret"] = 12.5
    keep.write_text("".join(f"{json.dumps(regret)}\n" for regret in changed))
    assert main([*command, "--processes", "2"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert 12.5 in [r["regret"] for r in second["regrets"]]
    assert len(keep.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samplers", "tpee"], "unknown sampler 'tpee'; did you mean 'tpe'"),
        (["--samplers", "gpyopt:jiter=1"], "has no option 'jiter'; did you mean 'jitter'"),
        (["--samplers", "tpe,tpe"], "--samplers: 'tpe' stands twice"),
        (["--samplers", ","], "--samplers: must be names"),
        (["--samplers", "gpyopt:faithful"], "must look like name:option=value"),
        (["--functions", "hartman"], "unknown test function 'hartman'; did you mean 'hartmann'"),
        (["--observations", "50,x"], "--observations: must be whole numbers"),
        (["--trials", "5"], "greater than or equal to 9"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "samplers", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello\n")
    assert main(["benchmark", "samplers", *SMALL, "--keep", str(path)]) == 2
    assert "is no file that `kftune benchmark samplers --keep` wrote" in capsys.readouterr().err
    assert path.read_text() == "hello\n"
