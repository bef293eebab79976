"""delete, rename, drop: what they ask, what goes and what stays, in kftune's tables and in Optuna's."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from kftune.analysis.stored.results import load_results
from kftune.storage.repository import Repository
from tests.cli.conftest import STUDY, Command
from tests.cli.stored import make
from tests.processes.database import connected
from tests.processes.warm import WarmPopen

CHANGES = [["delete", "small"], ["delete", "small/digits_mlp/sgd"], ["rename", "small", "new"]]
CHANGES += [["drop", "small/digits_mlp/kfac", "1"]]


def rows(database: Path) -> dict[str, int]:
    """Table → number of its rows; no row refers to one that is not there."""
    with connected(database, read_only=True) as connection:
        assert connection.execute("pragma foreign_key_check").fetchall() == []
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return {name: connection.execute(f'select count(*) from "{name}"').fetchone()[0] for name in tables}


def contents(database: Path, name: str) -> Any:
    """All that is stored of a study file, as kftune and as Optuna read it."""
    url = f"sqlite:///{database}"
    with Repository.open(url, read_only=True) as repository:
        (file,) = load_results(repository, [name])
    trials = [
        [
            (t.number, t.state, t.values, t.params, t.user_attrs, t.system_attrs, t.intermediate_values)
            for t in optuna.load_study(study_name=study.record.study, storage=url).trials
        ]
        for study in file.studies
    ]
    return file, trials


@pytest.fixture
def two_files(workdir: Path) -> Path:
    """``made`` and ``other`` in one database, with reports, attributes and heartbeats of Optuna's."""
    path = workdir / "made.db"
    make(path)
    make(path, name="other")
    for name in optuna.get_all_study_names(f"sqlite:///{path}"):
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{path}")
        study.set_user_attr("mine", name)
        study._storage.set_study_system_attr(study._study_id, "theirs", 1)
        study.enqueue_trial({"lr": 0.5}, {"note": "given"})
        trial = study.ask()
        trial.suggest_float("lr", 1e-4, 1.0, log=True)
        trial.report(1.0, 3)
    with connected(path) as connection:
        connection.execute(
            "insert into trial_heartbeats (trial_id, heartbeat) select trial_id, '2026-01-01 00:00:00' from trials"
        )
    return path


@pytest.mark.parametrize("named", ["made", "made.yaml"])
def test_a_deleted_study_leaves_the_rest_as_it_was(kftune: Command, two_files: Path, named: str) -> None:
    (two_files.parent / "made.yaml").write_text("name: made\nstorage: made.db\n")
    before, other = rows(two_files), contents(two_files, "other")
    result = kftune("delete", named, "--yes", "--storage", "made.db")
    assert (result.code, result.err) == (0, "")
    assert result.out == "deleted 4 studies with 46 runs in made.db\n"
    after = rows(two_files)
    kept = ("kftune_alembic_version", "alembic_version", "version_info", "kftune_session")
    names = [name for name in before if name not in kept]
    halved = [name for name in names if before[name] != after[name]]
    assert {name: after[name] for name in halved} == {name: before[name] // 2 for name in halved}
    assert {name for name in names if before[name]} == set(halved)
    assert contents(two_files, "other") == other
    with Repository.open(f"sqlite:///{two_files}", read_only=True) as repository:
        # The first session has made runs of the other file's studies, too, as after --widen.
        assert [session.file_name for session in repository.sessions()] == ["", "other"]
    assert kftune("status").code == 0
    assert "unknown study 'made'" in kftune("status", "made", "--storage", "made.db").err
    assert kftune("delete", "other", "--yes", "--json", "--storage", "made.db").code == 0
    assert {name: n for name, n in rows(two_files).items() if n and name in (*names, "kftune_session")} == {}
    make(two_files)  # the names are free again
    assert kftune("delete", "made.db", "--yes").code == 0


def test_one_study_of_a_file(kftune: Command, two_files: Path) -> None:
    other = contents(two_files, "other")
    result = kftune("delete", "made/digits_mlp/sgd", "--yes", "--json")
    assert json.loads(result.out) == {"database": "made.db", "deleted": ["made/digits_mlp/sgd"], "n_runs": 13}
    rows(two_files)
    with Repository.open(f"sqlite:///{two_files}", read_only=True) as repository:
        assert [r.study for r in repository.studies("made")] == [
            "made/digits_mlp/kfac",
            "made/digits_autoencoder/sgd",
            "made/digits_autoencoder/kfac",
        ]
        assert len(repository.sessions("made")) == 1
    assert contents(two_files, "other") == other
    assert "did you mean 'made/digits_mlp/kfac'" in kftune("delete", "made/digits_mlp/kfak", "--yes").err


def test_a_renamed_study_goes_on_as_if_it_had_always_had_the_name(kftune: Command, finished: Path) -> None:
    other = finished.with_name("twin.db")
    other.write_bytes(finished.read_bytes())
    result = kftune("rename", "study.yaml", "new name", "--yes")
    assert (result.code, result.err) == (0, "")
    assert (
        result.out
        == "small is new name in small.db; to go on with it from a study file, that must have name: new name\n"
    )
    rows(finished)
    Path("study.yaml").write_text(STUDY.replace("name: small", "name: new name\nstorage: small.db"))
    assert "new name is complete already" in kftune("run", "study.yaml").out
    assert kftune("resume", "new name", "--storage", "small.db", "--set", "trials=3").code == 0
    assert kftune("resume", "small", "--storage", "twin.db", "--set", "trials=3").code == 0
    found = []
    for database, name in ((finished, "new name"), (other, "small")):
        with Repository.open(f"sqlite:///{database}", read_only=True) as repository:
            runs = [
                (r.study.removeprefix(name), r.trial, r.params, r.result.curve[-1].test_loss) for r in repository.runs()
            ]
            assert {session.file_name for session in repository.sessions()} == {name}
            found.append(runs)
    assert found[0] == found[1]


def test_names_that_are_taken_or_wrong(kftune: Command, two_files: Path) -> None:
    before = rows(two_files), contents(two_files, "made"), contents(two_files, "other")
    for arguments, line in (
        (["rename", "made", "other"], "made.db holds a study 'other/digits_mlp/sgd' already; choose another name"),
        (["rename", "made", "a/b"], "NEW: must begin with a letter or digit"),
        (["rename", "made/digits_mlp/sgd", "x"], "a whole study file gets another name: kftune rename made x"),
        (["rename", "mede", "x"], "unknown study 'mede'; did you mean 'made'? (available: made, other)"),
        (["delete", "made.db"], "made.db holds several studies: name one of made, other"),
        (["drop", "made", "1"], "made has several studies: name one of made/digits_mlp/sgd, "),
        (["drop", "made/digits_mlp/sgd", "6"], "made/digits_mlp/sgd has no trial 6; it has 6, from 0"),
        (["delete", "made", "--storage", "no.db"], "there is no database no.db"),
    ):
        result = kftune(*arguments, "--yes")
        assert (result.code, len(result.err.splitlines()), result.out) == (2, 1, "")
        assert line in result.err
    assert (rows(two_files), contents(two_files, "made"), contents(two_files, "other")) == before


def test_an_optuna_study_of_somebody_elses_keeps_its_name(kftune: Command, finished: Path) -> None:
    optuna.create_study(study_name="new/digits_mlp/kfac", storage="sqlite:///small.db")
    assert "holds a study 'new/digits_mlp/kfac' already" in kftune("rename", "small", "new", "--yes").err
    with Repository.open("sqlite:///small.db", read_only=True) as repository:
        assert repository.file_names() == ["small"]


@pytest.mark.parametrize("change", CHANGES, ids=" ".join)
def test_nothing_is_changed_before_somebody_agrees(
    kftune: Command, finished: Path, monkeypatch: pytest.MonkeyPatch, change: list[str]
) -> None:
    before = rows(finished), contents(finished, "small")
    for answer, code in (("", 2), ("n\n", 1), ("\n", 1), ("what?\n", 1)):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        result = kftune(*change)
        assert result.code == code
        assert "? [y/N] " in result.err
        assert "small" in result.err
        assert (rows(finished), contents(finished, "small")) == before
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert kftune(*change).code == 0
    assert rows(finished) != before[0] or change[0] == "rename"


def test_nothing_is_changed_while_it_runs(kftune: Command, study_file: Path) -> None:
    study_file.write_text(STUDY.replace("{updates: 5}", "{seconds: 600}"))
    command = [sys.executable, "-m", "kftune", "run", "study.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with WarmPopen(command, cwd=study_file.parent, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "8 runs, on cpu" in process.stdout.readline()
            for change in CHANGES:
                result = kftune(*change, "--yes")
                assert (result.code, result.out) == (2, "")
                assert result.err.endswith("is running studies in it now\n")
        finally:
            process.send_signal(signal.SIGINT)
            assert "Ctrl-C again stops at once" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    with Repository.open("sqlite:///small.db", read_only=True) as repository:
        assert [record.study for record in repository.studies()] == ["small/digits_mlp/sgd", "small/digits_mlp/kfac"]


def test_a_dropped_trial_is_made_anew_and_the_others_stay(kftune: Command, finished: Path) -> None:
    assert kftune("confirm", "--top", "2", "--seeds", "1").code == 0
    before = contents(finished, "small")
    result = kftune("drop", "small/digits_mlp/kfac", "1", "1", "--yes")
    assert result.out == (
        "dropped trial 1 of small/digits_mlp/kfac in small.db\n"
        "1 new trial takes its place: kftune resume small --storage small.db\n"
    )
    rows(finished)
    file, trials = contents(finished, "small")
    assert [[t[0] for t in of_study] for of_study in trials] == [[0, 1], [0, 1]]
    assert (trials[0], trials[1][0]) == (before[1][0], before[1][1][0])
    assert trials[1][1][1:4] == (optuna.trial.TrialState.WAITING, None, {})
    assert [t.trial.number for t in file.studies[1].trials] == [0]
    assert [run.trial for run in file.studies[1].confirmations] == [0]
    assert "1/2" in kftune("status").out
    assert kftune("resume").code == 0
    file, trials = contents(finished, "small")
    # Both trials are drawn at random, from their numbers.
    assert [t[:4] for t in trials[1]] == [t[:4] for t in before[1][1]]
    assert [run.trial for run in file.studies[1].runs] == [0, 0, 1, 1]
    assert "small is complete already" in kftune("resume").out


def test_a_kill_leaves_both_or_neither(finished: Path) -> None:
    """The write lock is taken once; what fails after the first statement takes all of them back."""
    before = rows(finished), contents(finished, "small")
    with connected(finished) as connection:
        connection.execute("create trigger late before delete on studies begin select raise(abort, 'no'); end")
    with Repository.open(f"sqlite:///{finished}") as repository, pytest.raises(Exception, match="no"):
        repository.delete(["small/digits_mlp/sgd"])
    with connected(finished) as connection:
        connection.execute("drop trigger late")
    assert (rows(finished), contents(finished, "small")) == before


READING = [
    ["status"],
    ["best"],
    ["compare"],
    ["export"],
    ["dashboard"],
    ["transfer"],
    ["drop", "small/digits_mlp/kfac", "0"],
]


@pytest.mark.parametrize("command", READING, ids=lambda command: command[0])
def test_what_was_deleted_with_optuna_is_told(kftune: Command, finished: Path, command: list[str]) -> None:
    optuna.delete_study(study_name="small/digits_mlp/kfac", storage="sqlite:///small.db")
    result = kftune(*command)
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert result.err == (
        "error: small.db: the Optuna study 'small/digits_mlp/kfac' was deleted outside kftune, "
        "whose runs are still here; "
        "`kftune resume small --storage small.db` restores it from them, "
        "`kftune delete small/digits_mlp/kfac --storage small.db` deletes them too\n"
    )


@pytest.mark.parametrize("command", [["run", "study.yaml"], ["resume"], ["confirm", "--top", "1", "--seeds", "1"]])
@pytest.mark.parametrize("recreated", [False, True])
def test_what_was_deleted_with_optuna_is_restored(
    kftune: Command, finished: Path, command: list[str], recreated: bool
) -> None:
    before, url = contents(finished, "small"), "sqlite:///small.db"
    for study in before[0].studies:
        optuna.delete_study(study_name=study.record.study, storage=url)
        if recreated:
            optuna.create_study(study_name=study.record.study, storage=url)
    result = kftune(*command)
    assert (result.code, result.err) == (0, "")
    said = "small/digits_mlp/kfac: its Optuna study was deleted outside kftune; its 2 trials are restored"
    assert said in " ".join(result.out.split())
    rows(finished)
    file, trials = contents(finished, "small")
    assert [[t[:3] for t in of_study] for of_study in trials] == [[t[:3] for t in of_study] for of_study in before[1]]
    for i, of_study in enumerate(before[1]):
        for mine, theirs in zip(trials[i], of_study, strict=True):
            assert mine[3] == pytest.approx(theirs[3], rel=1e-12)
    assert [study.runs for study in file.studies] == [study.runs for study in before[0].studies]
    assert "deleted outside" not in kftune("resume", "--set", "trials=3").out
    assert "3/3" in kftune("status").out


def test_what_is_left_of_it_is_deleted(kftune: Command, finished: Path) -> None:
    optuna.delete_study(study_name="small/digits_mlp/kfac", storage="sqlite:///small.db")
    assert kftune("delete", "small/digits_mlp/kfac", "--yes").code == 0
    rows(finished)
    assert kftune("status").code == 0


def test_an_interrupted_trial_is_restored_as_one(kftune: Command, finished: Path) -> None:
    kftune("drop", "small/digits_mlp/sgd", "0", "--yes")
    with connected(finished) as connection:
        run = "select max(r.id) from kftune_run r join kftune_study s on s.id = r.study_id where s.study like '%/sgd'"
        connection.execute(f"delete from kftune_point where run_id = ({run})")
        connection.execute(f"delete from kftune_run where id = ({run})")
    optuna.delete_study(study_name="small/digits_mlp/sgd", storage="sqlite:///small.db")
    assert kftune("resume").code == 0
    file, trials = contents(finished, "small")
    assert [t[1].name for t in trials[0]] == ["COMPLETE", "COMPLETE"]
    assert [(run.trial, run.repeat) for run in file.studies[0].runs] == [(0, 0), (0, 1), (1, 0), (1, 1)]
