"""compare, transfer, and best's provisional mark: what is said, in 80 columns, as JSON and as LaTeX."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from kftune.results import Outcome, RunResult
from kftune.storage.repository import Repository
from tests.analysis.builders import add_trial, failed, result
from tests.cli.conftest import Command
from tests.cli.stored import make
from tests.processes.database import connected
from tests.storage.builders import run_record


@pytest.fixture(scope="session")
def made_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "made.db"
    make(path)
    return path


@pytest.fixture
def made(made_file: Path, workdir: Path) -> Path:
    """``made.db`` in the current directory."""
    return Path(shutil.copy(made_file, workdir / "made.db"))


COMMANDS = [["compare"], ["compare", "--target", "0.5"], ["transfer"], ["transfer", "--top", "2"], ["best"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_it_fits_80_columns_and_json_is_all_that_is_printed(kftune: Command, made: Path, command: list[str]) -> None:
    result = kftune(*command)
    assert (result.code, result.err) == (0, "")
    assert [line for line in result.out.splitlines() if cell_len(line) > 80] == []
    assert "…" not in result.out
    plain = kftune(*command, "--json")
    assert plain.code == 0
    json.loads(plain.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_compare_ranks_by_confirmed_loss_and_says_how_sure(kftune: Command, made: Path) -> None:
    text = kftune("compare").out
    assert "made, digits_mlp: by confirmed test loss (3 fresh seeds)" in text
    assert "made, digits_autoencoder: by tuned test loss, not confirmed" in text
    first = text.split("made, digits_autoencoder")[0]
    assert first.index("1  kfac") < first.index("2  sgd *")
    assert "0.3700" in first
    assert "0.2317 to 0.5083" in " ".join(first.split())
    assert "2 diverged" in first
    assert "kfac is better than sgd: difference -0.303 (-0.318 to -0.289)" in " ".join(first.split())
    joined = " ".join(first.split())
    assert "* sgd is provisional: 3 of its best 3 trials are at the upper edge of lr (0.0001 to 1)" in joined
    assert "try 0.0001 to 10" in joined


def test_compare_in_json(kftune: Command, made: Path) -> None:
    confirmed, tuned = json.loads(kftune("compare", "made.db", "--json", "--target", "0.5").out)["problems"]
    assert [(row["optimizer"], row["rank"], row["loss"]) for row in confirmed["rows"]] == [
        ("kfac", 1, pytest.approx(0.37)),
        ("sgd", 2, pytest.approx(0.6733333)),
    ]
    assert [row["tuned"] for row in confirmed["rows"]] == [0.3, 0.6]
    assert confirmed["comparisons"][0]["superiority"]["probability"] == 1.0
    assert (tuned["is_confirmed"], tuned["comparisons"]) == (False, [])
    times = json.loads(kftune("compare", "--json", "--target", "0.5").out)["times_to_target"]
    assert [(time["problem"], time["optimizer"], time["time"]) for time in times] == [
        ("digits_mlp", "sgd", None),
        ("digits_mlp", "kfac", 2.0),
        ("digits_autoencoder", "sgd", None),
        ("digits_autoencoder", "kfac", 2.0),
    ]


def test_compare_in_latex(kftune: Command, made: Path) -> None:
    text = kftune("compare", "--latex").out
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert r"digits\_mlp: test loss on 3 fresh seeds" in text
    assert r"kfac & $0.3700$ [$0.2317$, $0.5083$] & $0.3000$ & $0.4$ & $20$ & -- \\" in text
    assert r"sgd* & " in text
    assert kftune("compare", "--latex", "--json").code == 2


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs LaTeX")
def test_the_latex_is_latex(kftune: Command, made: Path) -> None:
    table = kftune("compare", "--latex").out
    made.with_name("t.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + table + "\\end{document}"
    )
    subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=made.parent, check=True, capture_output=True)


def test_without_confirming_runs_of_a_budget_nothing_is_mixed(kftune: Command, made: Path) -> None:
    problems = json.loads(kftune("compare", "--budget-factor", "3", "--json").out)["problems"]
    assert [problem["is_confirmed"] for problem in problems] == [False, False]
    assert {row["rank"] for problem in problems for row in problem["rows"]} == {None}
    text = kftune("compare", "--budget-factor", "3", "--target", "0.5").out
    assert "made, digits_mlp: nothing is confirmed at 3 times the budget\n" in text
    assert "kftune confirm --budget-factor 3 trains the best again" in " ".join(text.split())
    assert "confirming" not in text  # the runs of the study's own budget
    assert r"Nothing is confirmed at 3 times the budget." in kftune("compare", "--budget-factor", "3", "--latex").out


def confirm(path: Path, optimizer: str, results: Sequence[RunResult], **other: Any) -> None:
    """Store confirming runs of trial 0 on ``digits_mlp`` on the seeds after those that :func:`make` stored."""
    with Repository.open(f"sqlite:///{path}") as repository:
        first = 3 if other.get("budget_factor", 1) == 1 else 0
        for repeat, result_ in enumerate(results, start=first):
            known = {"study": f"made/digits_mlp/{optimizer}", "purpose": "confirm", "result": result_}
            repository.add_run(run_record(1, 0, repeat, **(known | other)), session_ledger={})


def test_failed_confirming_runs_and_seeds_per_row_are_told(kftune: Command, made: Path) -> None:
    confirm(made, "kfac", [failed(Outcome.CRASHED), failed(Outcome.TIMED_OUT, 1.0)])
    result = kftune("compare")
    assert [line for line in result.out.splitlines() if cell_len(line) > 80] == []
    first = " ".join(result.out.split("made, digits_autoencoder")[0].split())
    assert "by confirmed test loss (3 to 4 fresh seeds)" in first
    assert "seeds" in first.split("optimizer")[1].split("1 ")[0]
    row = json.loads(kftune("compare", "--json").out)["problems"][0]["rows"][1]
    assert (row["optimizer"], row["n_seeds"], row["n_uncounted"]) == ("kfac", 4, 1)
    assert row["confirm_outcomes"] == {"completed": 3, "crashed": 1, "timed_out": 1}
    assert " 4 of 5 " in result.out
    words = result.out.split()  # of "confirm: 1 crashed, 1 timed out", in a narrow column
    assert {"confirm:", "crashed,", "timed"} <= set(words)
    latex = kftune("compare", "--latex").out
    assert r"test loss on 3 to 4 fresh seeds, mean" in latex
    assert r"Optimizer & Confirmed & Seeds & Tuned & Seconds & Updates & Failed runs \\" in latex
    assert r"& 4 of 5 & $0.3000$" in latex
    assert r"& confirm: 1 crashed, 1 timed out \\" in latex


def test_a_longer_budget_is_named_wherever_its_runs_are_shown(kftune: Command, made: Path) -> None:
    for optimizer in ("sgd", "kfac"):
        confirm(made, optimizer, [result(1.5, 1.0, 0.4), result(1.5, 1.0, 0.41)], budget_factor=3.0)
    options = ["compare", "--budget-factor", "3"]
    text = " ".join(kftune(*options, "--target", "0.5").out.split())
    assert "first at the target, with 3 times the budget" in text
    assert "digits_mlp kfac 0.5 3 s confirming" in text
    assert "digits_autoencoder kfac 0.5 – not confirmed" in text
    assert (
        r"test loss on 2 fresh seeds with 3 times the budget, mean and 95 \% interval"
        in kftune(*options, "--latex").out
    )


def test_times_of_several_files_are_told_apart(kftune: Command, made: Path) -> None:
    make(made.with_name("other.db"), name="other")
    result = kftune("compare", "made.db", "other.db", "--target", "0.5")
    assert [line for line in result.out.splitlines() if cell_len(line) > 80] == []
    assert "kfac (other)" in " ".join(result.out.split()).split("at the target")[1]
    plain = json.loads(kftune("compare", "made.db", "other.db", "--target", "0.5", "--json").out)
    assert [len(profile["ratios"]) for profile in plain["performance_profiles"]] == [2] * 4  # two optimizers, two files
    make(made, name="other")  # of one database that is named once
    times = " ".join(kftune("compare", "made.db", "--target", "0.5").out.split()).split("at the target")[1]
    assert "study problem optimizer" in times
    assert "made digits_mlp kfac 0.5 2 s confirming" in times
    assert "other digits_mlp kfac 0.5 2 s confirming" in times


def test_a_better_trial_that_came_after_the_confirmation_is_told(kftune: Command, made: Path) -> None:
    with Repository.open(f"sqlite:///{made}") as repository:
        add_trial(repository, "made/digits_mlp/kfac", 5, [result(1.0, 0.2), result(1.0, 0.2)], value=0.2)
    text = " ".join(kftune("compare").out.split())
    said = "trial 5 is better in the search and not confirmed: kftune confirm again"
    assert f"* kfac is provisional: {said}" in text
    assert "1 kfac * " in text
    for kind in ("yaml", "python"):
        exported = kftune("export", "made/digits_mlp/kfac", "--as", kind, "--storage", "made.db").out
        assert f"# made/digits_mlp/kfac, trial 0: test loss 0.37 on fresh seeds; {said}" in exported
    assert "its best trial is not confirmed" in kftune("compare", "--latex").out


def test_several_files_of_the_same_problems_have_one_verdict(kftune: Command, made: Path) -> None:
    make(made.with_name("other.db"), confirmed=False)  # of the same name
    problems = json.loads(kftune("compare", "made.db", "other.db", "--json").out)["problems"]
    assert [(p["problem"], p["file_name"]) for p in problems] == [
        ("digits_mlp", "made #1 and made #2"),
        ("digits_autoencoder", "made #1 and made #2"),
    ]
    rows = [[(row["rank"], row["optimizer"], row["is_confirmed"]) for row in p["rows"]] for p in problems]
    assert rows[0] == [
        (1, "kfac (made #1)", True),
        (2, "sgd (made #1)", True),
        (None, "kfac (made #2)", False),
        (None, "sgd (made #2)", False),
    ]
    assert [row[0] for row in rows[1]] == [1, 2, 3, 4]


def test_pairs_of_optimizers_of_two_files(kftune: Command, made: Path) -> None:
    make(made.with_name("other.db"), name="other")
    result = kftune("compare", "made.db", "other", "--storage", "other.db")
    assert result.code == 2  # made.db is no name in other.db
    result = kftune("compare", "made.db", "other.db", "--json")
    pairs = json.loads(result.out)["problems"][0]["comparisons"]
    found = {(pair["first"], pair["second"]): pair for pair in pairs}
    within, across = found["kfac (made)", "sgd (made)"], found["kfac (made)", "sgd (other)"]
    assert (across["difference"], across["n_seeds"]) == (pytest.approx(within["difference"]), 3)
    alone = json.loads(kftune("compare", "made.db", "--json").out)["problems"][0]["comparisons"]
    assert within["p_value"] == alone[0]["p_value"]
    assert within["p_holm"] > alone[0]["p_holm"]  # six pairs instead of one


def test_files_without_a_common_problem_stand_beside_each_other(kftune: Command, made: Path) -> None:
    make(made.with_name("other.db"), name="other")
    for problem in ("digits_mlp", "digits_autoencoder"):
        with connected(made.with_name("other.db")) as connection:
            connection.execute("update kftune_study set problem = ? where problem = ?", (f"other_{problem}", problem))
    problems = json.loads(kftune("compare", "made.db", "other.db", "--json").out)["problems"]
    assert [p["file_name"] for p in problems] == ["made", "made", "other", "other"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("$.budget", {"seconds": 2.0}, 'budget is not known in one and {"seconds": 2.0} in the other'),
        ("$.problem.args", {"n": 20}, 'problem is {"name": "digits_mlp", "args": {}} in one and'),
        ("$.seed", 7, "seed is not known in one and 7 in the other"),
        ("$.dtype", "float64", 'dtype is not known in one and "float64" in the other'),
    ],
)
def test_what_cannot_be_compared_is_named(kftune: Command, made: Path, path: str, value: Any, said: str) -> None:
    other = made.with_name("other.db")
    make(other, name="other")
    with connected(other) as connection:
        connection.execute(
            "update kftune_study set identity = json_set(identity, ?, json(?))", (path, json.dumps(value))
        )
    result = kftune("compare", "made.db", "other.db")
    assert (result.code, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert result.err.startswith(f"error: made and other cannot be compared on digits_mlp: {said}")
    assert result.err.endswith("compare each by itself\n")
    assert kftune("compare", "other.db").code == 0


def test_files_of_different_objectives(kftune: Command, made: Path) -> None:
    make(made.with_name("other.db"), name="other", objective="train_loss")
    said = 'objective is "test_loss" in one and "train_loss" in the other'
    assert said in kftune("compare", "made.db", "other.db").err


def test_an_unknown_study_of_a_database(kftune: Command, made: Path) -> None:
    assert kftune("compare", "nothing", "--storage", "made.db").err.startswith("error: unknown study 'nothing'")


def test_transfer_looks_up_the_same_configuration(kftune: Command, made: Path) -> None:
    found = json.loads(kftune("transfer", "--json").out)
    there = {(t["optimizer"], t["source"]): t for t in found["transfers"]}
    kfac = there["kfac", "digits_mlp"]
    assert (kfac["source_trial"], kfac["target_trial"], kfac["loss"], kfac["own_best"]) == (0, 4, 0.7, 0.3)
    assert kfac["regret"] == pytest.approx((0.7 - 0.3) / (2.0 - 0.3))
    assert kfac["rank_there"] == 5
    assert {spread["optimizer"] for spread in found["spreads"]} == {"kfac", "sgd"}
    text = " ".join(kftune("transfer").out.split())
    assert "kfac digits_mlp digits_autoencoder 0.7000 0.3000 0.24" in text


def test_best_names_the_dimension_and_the_wider_box(kftune: Command, made: Path) -> None:
    text = " ".join(kftune("best").out.split())
    assert "provisional: 3 of its best 3 trials are at the upper edge of lr (0.0001 to 1); try 0.0001 to 10" in text
    marks = {(s["problem"], s["optimizer"]): s["is_provisional"] for s in json.loads(kftune("best", "--json").out)}
    assert marks["digits_mlp", "sgd"]
    assert not marks["digits_mlp", "kfac"]


@pytest.mark.parametrize("command", [["compare"], ["transfer"], ["export"], ["compare", "--latex"]], ids=" ".join)
def test_torch_is_not_imported(made: Path, command: list[str]) -> None:
    code = (
        "import sys; from kftune.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code or ('torch was imported' if 'torch' in sys.modules else 0))"
    )
    arguments = [sys.executable, "-c", code, *command]
    done = subprocess.run(arguments, cwd=made.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_several_configurations_of_a_study_are_told_apart(kftune: Command, made: Path) -> None:
    text = " ".join(kftune("transfer", "--top", "2").out.split())  # a long name goes on in the next line
    assert "optimizer best on rank trial tried on loss" in text
    assert "kfac digits_mlp 1 0 digits_autoenc 0.7000 0.3000" in text
    assert "kfac digits_mlp 2 1 digits_autoenc 0.6000 0.3000" in text
    make(made, name="later")
    result = kftune("transfer", "--top", "2").out
    assert [line for line in result.splitlines() if cell_len(line) > 80] == []
    assert "…" not in result
    assert "made/digits_ml" in result
    assert "later/digits_m" in result
