"""Commands that read: JSON, tables of 80 columns, no torch where it is not needed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

import kftune as package
from kftune.optim import OPTIMIZERS
from kftune.problems import PROBLEMS
from kftune.storage.repository import Repository
from kftune.study.config import load_config, make_plans
from kftune.study.samplers import SAMPLERS
from tests.cli.conftest import Command
from tests.cli.stored import make

NAMES = (*OPTIMIZERS.names(), *PROBLEMS.names(), *SAMPLERS.names())
READING = [
    ["status"],
    ["best"],
    ["best", "--top", "1"],
    ["validate", "study.yaml"],
    ["list"],
    ["list", "optimizers"],
    ["list", "problems"],
    ["list", "samplers"],
    ["list", "panels"],
    ["list", "figures"],
    ["data", "list", "--data-dir", "d"],
    *(["describe", name] for name in NAMES),
]


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_what_is_printed_fits_80_columns_and_has_no_escape_codes(
    kftune: Command, finished: Path, command: list[str]
) -> None:
    result = kftune(*command)
    assert (result.code, result.err) == (0, "")
    assert "\x1b" not in result.out
    too_long = [line for line in result.out.splitlines() if cell_len(line) > 80]
    assert too_long == []
    assert "…" not in result.out.replace(", and …", "").replace("… every", "")  # nothing was cut


@pytest.mark.parametrize("command", [*READING, ["dashboard"]], ids=" ".join)
def test_json_is_all_that_is_printed(kftune: Command, finished: Path, command: list[str]) -> None:
    result = kftune(*command, "--json")
    assert (result.code, result.err) == (0, "")
    json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_status_counts_trials_runs_and_seconds(kftune: Command, finished: Path) -> None:
    status = json.loads(kftune("status", "--json").out)["files"][0]
    assert [(s["problem"], s["optimizer"], s["n_finished"], s["n_runs"]) for s in status["studies"]] == [
        ("digits_mlp", "sgd", 2, 4),
        ("digits_mlp", "kfac", 2, 4),
    ]
    assert status["is_complete"]
    assert 0 < status["ledger"]["overhead_share"] < 1
    text = kftune("status").out
    assert "small: 4 of 4 trials, complete (small.db)" in text
    assert "Go on with" not in text
    share = [line.split()[-1] for line in text.splitlines() if line.startswith("overhead")]
    assert share == [f"{100 * status['ledger']['overhead_share']:.1f}%"]


def test_best_lists_the_best_first_with_fixed_values_apart(kftune: Command, finished: Path) -> None:
    studies = json.loads(kftune("best", "--json").out)
    assert [study["optimizer"] for study in studies] == ["sgd", "kfac"]
    values = [configuration["value"] for configuration in studies[0]["configurations"]]
    assert len(values) == 2
    assert values == sorted(values)
    text = kftune("best").out
    assert "digits_mlp, sgd: best 2 of 2 trials" in text
    assert f"{values[0]:.4g}" in text
    assert "fixed: batch_size=64, momentum=0.9" in text
    assert len(json.loads(kftune("best", "--top", "1", "--json").out)[0]["configurations"]) == 1


def test_long_lists_of_hyperparameters_are_broken_into_lines_not_cut(
    kftune: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = json.loads(kftune("best", "--json").out)[1]["configurations"][0]
    monkeypatch.setenv("COLUMNS", "60")
    text = kftune("best").out
    assert all(cell_len(line) <= 60 for line in text.splitlines())
    assert f"damping={best['params']['damping']:.4g}" in "".join(text.split("digits_mlp, kfac")[1]).replace("\n", " ")


def test_a_dashboard_is_written_where_it_is_said(kftune: Command, finished: Path) -> None:
    result = kftune("dashboard")
    assert result.out == "wrote dashboards/small.html\n"
    assert kftune("dashboard", "study.yaml", "--out", "x/y.html").out == "wrote x/y.html\n"
    page = (finished.parent / "x" / "y.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "small" in page


@pytest.mark.parametrize(
    "command",
    [["--help"], ["run", "--help"], ["status"], ["best"], ["dashboard"], ["status", "study.yaml"]],
    ids=" ".join,
)
def test_torch_is_not_imported_for_help_and_results(finished: Path, command: list[str]) -> None:
    code = (
        "import sys; from kftune.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or ('torch was imported' if 'torch' in sys.modules else 0))"
    )
    arguments = [sys.executable, "-c", code, *command]
    done = subprocess.run(arguments, cwd=finished.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_version_and_help(kftune: Command) -> None:
    assert kftune("--version").out == f"kftune {package.__version__}\n"
    commands = ("init", "validate", "run", "resume", "status", "best", "dashboard", "list", "describe", "data")
    for text in (kftune("--help").out, kftune().out):
        assert all(f" {command} " in text for command in commands)


def test_validate_says_how_long_it_will_take(kftune: Command, study_file: Path) -> None:
    result = kftune("validate", "study.yaml", "--set", "budget={seconds: 90}", "--set", "trials=10")
    assert result.out.endswith("study.yaml is fine\n")
    assert "40 runs in all, 1 h of training" in result.out
    plain = json.loads(kftune("validate", "study.yaml", "--json").out)
    assert (plain["n_runs"], plain["train_seconds"]) == (8, None)
    assert plain["studies"][1]["dimensions"] == ["lr", "damping", "kl_clip", "1-momentum", "batch_size"]
    assert list(study_file.parent.iterdir()) == [study_file]


def test_describe_shows_parameters_with_defaults_and_meanings(kftune: Command) -> None:
    described = json.loads(kftune("describe", "sgd", "--json").out)
    parameters = {parameter["name"]: parameter for parameter in described["parameters"]}
    loop = [
        "batch_size",
        "effective_batch_size",
        "accumulation",
        "full_batch_at",
        "schedule",
        "warmup",
        "final_lr",
        "decay_share",
        "milestones",
        "step_factor",
        "schedule_by",
        "weight_decay_schedule",
        "final_weight_decay",
        "momentum_growth",
        "momentum_growth_rate",
        "momentum_growth_start",
    ]
    assert list(parameters) == ["lr", "momentum", "nesterov", "weight_decay", "decoupled_weight_decay", *loop]
    assert parameters["momentum"]["default"] == 0.9
    assert parameters["momentum"]["meaning"] == "μ, in [0, 1)."
    text = kftune("describe", "kfac").out
    assert "damping/lr" in text
    assert "KFAC(model, " in text


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_hyperparameter_of_every_optimizer_is_explained(kftune: Command, name: str) -> None:
    described = json.loads(kftune("describe", name, "--json").out)
    assert [parameter["name"] for parameter in described["parameters"] if not parameter["meaning"]] == []


@pytest.mark.parametrize("problem", PROBLEMS.names())
def test_init_writes_a_study_file_that_is_valid(kftune: Command, workdir: Path, problem: str) -> None:
    optimizers = ",".join(OPTIMIZERS.names())
    result = kftune("init", "my study.yaml", "--problem", problem, "--optimizers", optimizers)
    assert result.code == 0
    config = load_config(workdir / "my study.yaml")
    assert config.name == "my study"
    assert [plan.optimizer for plan in make_plans(config)] == list(OPTIMIZERS.names())
    assert kftune("validate", "my study.yaml").code == 0


def test_every_key_is_in_the_file_of_init_with_its_default(kftune: Command, workdir: Path) -> None:
    assert kftune("init").code == 0
    text = (workdir / "study.yaml").read_text()
    uncommented = text.replace("\n# threads", "\nthreads").replace("\n# dtype", "\ndtype")
    uncommented = uncommented.replace("\n# evaluation", "\nevaluation").replace("\n# run_timeout", "\nrun_timeout")
    written = load_config(workdir / "study.yaml")
    (workdir / "study.yaml").write_text(uncommented)
    assert uncommented.count("\n# ") < text.count("\n# ")
    assert load_config(workdir / "study.yaml") == written


def test_init_overwrites_when_forced(kftune: Command, study_file: Path) -> None:
    assert kftune("init", "--force").out.startswith("wrote study.yaml\n")
    assert load_config(study_file).name == "study"


def test_more_trials_than_are_asked_for_now(kftune: Command, tmp_path: Path) -> None:
    database = tmp_path / "made.db"
    make(database)
    with Repository.open(f"sqlite:///{database}") as repository:
        repository.register([replace(record, n_trials=3) for record in repository.studies()])
    status = kftune("status", str(database)).out
    assert "12 of 12 and 8 more trials, complete" in " ".join(status.split())
    assert "3/3 and 2 more" in " ".join(status.split())
    page = tmp_path / "page.html"
    assert kftune("dashboard", str(database), "--out", str(page)).code == 0
    assert "3 of 3 and 2 more" in page.read_text()
    assert "5 of 3" not in page.read_text()
