"""export and import: what is written can be used, what is wrong is refused."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import optuna
import pandas as pd
import pytest
import yaml

from kftune.analysis.ranking.chosen import ChosenConfiguration
from kftune.cli.rendering.snippets import as_python
from kftune.study.config import make_plans, parse_config
from tests.cli.conftest import Command
from tests.cli.stored import make


@pytest.fixture
def made(workdir: Path) -> Path:
    """``made.db`` in the current directory."""
    make(workdir / "made.db")
    return workdir / "made.db"


def test_the_yaml_is_part_of_a_study_file(kftune: Command, made: Path) -> None:
    result = kftune("export", "--as", "yaml")
    assert result.code == 0
    first, second = result.out.split("---\n")
    assert "# made/digits_mlp/kfac, trial 0: test loss 0.37 on fresh seeds" in first
    assert "# made/digits_autoencoder/kfac, trial 0: test loss 0.3 in the search, not confirmed" in second
    head = "name: again\nproblems: [digits_mlp]\nbudget: {updates: 3}\ntrials: 1\n"
    config = parse_config(head + first, "again.yaml")
    plans = {plan.optimizer: plan for plan in make_plans(config)}
    assert plans["kfac"].space.fixed["lr"] == 0.05
    assert plans["kfac"].space.fixed["kl_clip"] is None
    assert "lr" not in plans["kfac"].space.dimensions
    assert [item["fixed"]["lr"] for item in yaml.safe_load(second)["optimizers"]] == [0.001, 0.001]


@pytest.mark.parametrize("written", ["{:d}", "{:.1f}"])
def test_no_batch_size_of_0_is_advised_for_a_sweep(kftune: Command, workdir: Path, written: str) -> None:
    rows = [f"{0.1 + 0.01 * i:g},{written.format(16 if i < 9 else 64 - i)},{i / 10}" for i in range(30)]
    (workdir / "sweep.csv").write_text("lr,batch_size,loss\n" + "\n".join(rows) + "\n")
    assert kftune("import", "sweep.csv", "--storage", "new.db").code == 0
    text = " ".join(kftune("best", "--storage", "new.db").out.split())
    assert "batch_size" in text
    assert "try 1 " in text
    assert "try 0 " not in text


def test_one_study_and_a_file(kftune: Command, made: Path) -> None:
    result = kftune("export", "made/digits_mlp/sgd", "--out", "out/best.yaml")
    assert result.out == "wrote out/best.yaml\n"
    written = yaml.safe_load((made.parent / "out" / "best.yaml").read_text())
    assert written == {"optimizers": [{"name": "sgd", "fixed": {"lr": 0.9, "momentum": 0.9, "batch_size": 64}}]}
    assert [path.name for path in (made.parent / "out").iterdir()] == ["best.yaml"]
    unknown = kftune("export", "made/digits_mlp/kfak")
    assert unknown.code == 2
    assert "did you mean 'made/digits_mlp/kfac'" in unknown.err


def test_the_json(kftune: Command, made: Path) -> None:
    configurations = json.loads(kftune("export", "--json").out)
    assert configurations == json.loads(kftune("export", "made.db", "--as", "json").out)
    kfac = next(c for c in configurations if c["study"] == "made/digits_mlp/kfac")
    assert (kfac["tuned"], kfac["confirmed"], kfac["trial"]) == (0.3, pytest.approx(0.37), 0)
    assert kfac["params"]["damping"] == 0.01


@pytest.mark.parametrize("optimizer", ["sgd", "kfac"])
def test_the_program_runs(kftune: Command, made: Path, optimizer: str) -> None:
    result = kftune("export", f"made/digits_mlp/{optimizer}", "--as", "python", "--out", "best.py")
    assert result.code == 0
    program = (made.parent / "best.py").read_text()
    assert f"from kftune.optim import {optimizer.upper()}" in program
    check = "print(type(optimizer).__name__, optimizer.param_groups[0]['lr'], len(inputs), bool(loss.isfinite()))"
    (made.parent / "best.py").write_text(program + check)
    done = subprocess.run([sys.executable, "best.py"], cwd=made.parent, capture_output=True, text=True, check=False)
    expected = {"sgd": "SGD 0.9 64 True", "kfac": "KFAC 0.05 128 True"}[optimizer]
    assert (done.stdout.strip(), done.stderr) == (expected, "")


def test_the_winner_is_written_without_being_named(kftune: Command, made: Path) -> None:
    winners = json.loads(kftune("export", "--winner", "--json").out)
    ranked = json.loads(kftune("compare", "--json").out)["problems"]
    first = [(verdict["problem"], verdict["rows"][0]["optimizer"], verdict["rows"][0]["trial"]) for verdict in ranked]
    assert [(w["problem"], w["optimizer"], w["trial"]) for w in winners] == first
    assert [(w["optimizer"], w["confirmed"]) for w in winners] == [("kfac", pytest.approx(0.37)), ("kfac", None)]
    named = kftune("export", "made/digits_mlp/kfac", "--as", "python").out
    assert kftune("export", "made/digits_mlp", "--as", "python").out == named
    assert kftune("export", "made/digits_mlp", "--winner").out == kftune("export", "made/digits_mlp/kfac").out
    assert kftune("export", "--winner", "--as", "csv", "--out", "t").code == 2


def test_the_program_is_for_one_problem(kftune: Command, made: Path) -> None:
    result = kftune("export", "--as", "python")
    assert result.code == 2
    assert result.err.endswith("name one of made/digits_mlp, made/digits_autoencoder\n")
    unknown = kftune("export", "made/digits", "--as", "python")
    assert (unknown.code, "did you mean" in unknown.err) == (2, True)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_runs_and_curves_in_long_format(kftune: Command, made: Path, kind: str) -> None:
    result = kftune("export", "--as", kind, "--out", "tables")
    assert result.out == f"wrote tables/runs.{kind}\nwrote tables/curves.{kind}\n"
    read = pd.read_csv if kind == "csv" else pd.read_parquet
    runs, curves = (read(made.parent / "tables" / f"{name}.{kind}") for name in ("runs", "curves"))
    assert len(runs) == 2 * 2 * 5 * 2 + 2 * 3
    kfac = runs[(runs.study == "made/digits_mlp/kfac") & (runs.purpose == "confirm")]
    assert kfac.value.tolist() == [0.31, 0.42, 0.38]
    assert kfac["param.damping"].tolist() == [0.01] * 3
    assert curves.groupby(["study", "purpose", "trial", "repeat"]).ngroups == len(runs)
    assert kftune("export", "--as", kind, "--out", f"all.{kind}").out == f"wrote all.{kind}\n"
    assert len(read(made.parent / f"all.{kind}")) == len(curves)


def test_tables_need_a_place_that_can_be_written(kftune: Command, made: Path) -> None:
    assert kftune("export", "--as", "csv").err == (
        "error: --as csv needs --out: a file, or a directory for runs and curves apart\n"
    )
    assert "must end in .parquet" in kftune("export", "--as", "parquet", "--out", "x.csv").err
    (made.parent / "taken").write_text("")
    result = kftune("export", "--as", "csv", "--out", "taken/x")
    assert result.code == 2
    assert "cannot be written" in result.err


def test_a_stored_name_is_never_read_as_code() -> None:
    chosen = ChosenConfiguration(
        study="a\nimport os",
        problem="p",
        optimizer="kfac",
        optimizer_name="kfac",
        problem_name="p'); boom('",
        problem_args={"x)": 1},
        trial=0,
        objective="test_loss",
        tuned=1.0,
        confirmed=None,
        params={"lr": 0.1, "damping=boom(), x": 1, "class": 2},
    )
    tree = ast.parse(as_python(chosen))
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert calls == {"KFAC", "model", "default_data_dir", "len"}
    assert not any(isinstance(node, ast.Import) and node.names[0].name == "os" for node in ast.walk(tree))


def test_an_optuna_study_stands_beside_kftunes(kftune: Command, made: Path) -> None:
    study = optuna.create_study(study_name="old sweep", storage="sqlite:///optuna.db")
    study.optimize(lambda trial: trial.suggest_float("lr", 1e-3, 1, log=True), n_trials=4)
    arguments = ["--storage", "made.db", "--problem", "digits_mlp", "--optimizer", "by hand"]
    result = kftune("import", "optuna.db#old sweep", *arguments)
    assert (result.code, result.err) == (0, "")
    assert "stored 1 study as old sweep in made.db" in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines()[:-1])
    problems = json.loads(kftune("compare", "made.db", "--json").out)["problems"]
    assert [(p["file_name"], p["rows"][0]["optimizer"]) for p in problems][-1] == ("old sweep", "by hand")
    assert problems[-1]["rows"][0]["loss"] == study.best_value
    for command in (["status"], ["best"], ["compare"], ["transfer"], ["export", "--as", "csv", "--out", "t"]):
        assert kftune(*command, "--storage", "made.db").code == 0
    again = kftune("import", "optuna.db#old sweep", *arguments)
    assert (again.code, "choose another --name" in again.err) == (2, True)


def test_an_imported_study_cannot_be_gone_on_with(kftune: Command, workdir: Path) -> None:
    (workdir / "sweep.csv").write_text("lr,loss\n0.1,1.0\n0.2,2.0\n")
    imported = json.loads(kftune("import", "sweep.csv", "--storage", "new.db", "--name", "mine", "--json").out)
    assert imported["studies"] == [
        {"study": "mine/imported/imported", "n_trials": 2, "n_runs": 2, "searched": ["lr"], "fixed": {}}
    ]
    result = kftune("resume", "mine", "--storage", "new.db")
    assert result.code == 2
    assert result.err == "error: mine was imported from sweep.csv; there is nothing to go on with\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.csv"], "--storage names the database"),
        (["x.txt", "--storage", "new.db"], "neither DATABASE#STUDY"),
        (["missing.csv", "--storage", "new.db"], "missing.csv cannot be read: No such file"),
        (["missing.db#x", "--storage", "new.db"], "there is no database missing.db"),
        (["missing.db#x", "--storage", "new.db", "--value", "v"], "--value and --params are for CSV"),
        (["good.csv", "--storage", "new.db", "--name", "a/b"], "--name: must begin with"),
        (["good.csv", "--storage", "new.db", "--problem", "a/b"], "problem: must begin with"),
    ],
)
def test_what_cannot_be_imported_writes_nothing(
    kftune: Command, workdir: Path, arguments: list[str], message: str
) -> None:
    (workdir / "good.csv").write_text("lr,loss\n0.1,1.0\n")
    result = kftune("import", *arguments)
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert [path.name for path in workdir.iterdir()] == ["good.csv"]


def test_two_study_files_of_one_problem_are_two_parts(kftune: Command, made: Path) -> None:
    make(made, name="later")
    documents = list(yaml.safe_load_all(kftune("export").out))
    assert [[item["name"] for item in document["optimizers"]] for document in documents] == [["sgd", "kfac"]] * 4


@pytest.mark.parametrize(
    ("params", "n_examples", "comment"),
    [
        ({"batch_size": 64, "accumulation": 4}, 256, ""),
        ({"batch_size": 32, "effective_batch_size": 96}, 96, ""),
        ({"batch_size": 32, "full_batch_at": 500}, 32, "of the first update; batches grow"),
        ({}, "len(problem.train)", ""),
    ],
    ids=str,
)
def test_the_program_takes_the_batch_of_an_update(params: dict[str, int], n_examples: object, comment: str) -> None:
    chosen = ChosenConfiguration(
        study="s/digits_mlp/sgd", problem="digits_mlp", optimizer="sgd", optimizer_name="sgd",
        problem_name="digits_mlp", problem_args={}, trial=0, objective="test_loss", tuned=1.0, confirmed=None,
        params={"lr": 0.1, **params},
    )  # fmt: skip
    (line,) = [line for line in as_python(chosen).splitlines() if line.startswith("n_examples = ")]
    given, _, said = line.removeprefix("n_examples = ").partition("  # ")
    assert said == comment
    assert (eval(given, {}, dict(params)) if params else given) == n_examples


def test_json_and_tables_exclude_each_other(kftune: Command, made: Path) -> None:
    for kind in ("csv", "parquet"):
        result = kftune("export", "--as", kind, "--out", f"x.{kind}", "--json")
        assert (result.code, result.out, "give one of them" in result.err) == (2, "", True)
        assert not (made.parent / f"x.{kind}").exists()


def test_an_exported_table_comes_back_file_by_file(kftune: Command, made: Path) -> None:
    make(made, name="other", objective="train_loss")
    assert kftune("export", "--as", "csv", "--out", "t").code == 0
    several = kftune("import", "t/runs.csv", "--storage", "new.db")
    assert several.err == (
        "error: t/runs.csv holds runs of 2 study files: import them apart, t/runs.csv#made or t/runs.csv#other\n"
    )
    assert not (made.parent / "new.db").exists()
    unknown = kftune("import", "t/runs.csv#othr", "--storage", "new.db")
    assert "unknown study file 'othr'; did you mean 'other'?" in unknown.err
    assert "a row for every evaluation" in kftune("import", "t/curves.csv", "--storage", "new.db").err
    wrong = kftune("import", "t/runs.csv#other", "--storage", "new.db", "--objective", "test_error")
    assert wrong.err == "error: --objective test_error: its values are of train_loss\n"
    for name in ("made", "other"):
        assert kftune("import", f"t/runs.csv#{name}", "--storage", "new.db").code == 0
    before, after = (json.loads(kftune("best", "--storage", db, "--json").out) for db in ("made.db", "new.db"))
    shown = [
        {
            (study["study"], study["objective"]): [best["run_values"] for best in study["configurations"]]
            for study in found
        }
        for found in (before, after)
    ]
    assert len(shown[0]) == 8
    assert shown[0] == shown[1]
    assert {objective for _, objective in shown[1]} == {"test_loss", "train_loss"}


@pytest.mark.parametrize("header", ["lr,lr,loss", "lr,loss,loss", "param.lr,param.lr,loss", "lr, lr ,loss"])
def test_a_column_that_stands_twice_is_refused(kftune: Command, header: str) -> None:
    Path("sweep.csv").write_text(f"{header}\n0.1,0.2,1\n0.2,0.3,2\n")
    result = kftune("import", "sweep.csv", "--storage", "new.db", "--name", "sweep")
    assert result.code == 2
    assert result.err.startswith("error: sweep.csv, line 1: the column '")
    assert "stands twice" in result.err
    assert not Path("new.db").exists()
