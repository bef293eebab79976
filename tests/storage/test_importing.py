"""Results made elsewhere: Optuna studies and tables of sweeps, as they look to whoever reads them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from kftune.analysis.stored.exporting import long_runs
from kftune.analysis.stored.results import FileResults, load_results
from kftune.errors import StorageError, UnknownNameError, UsageError
from kftune.results import Outcome
from kftune.storage.importing.csv_sweep import read_csv_sweep
from kftune.storage.importing.optuna_study import read_optuna_study
from kftune.storage.importing.studies import ImportedStudy, store_imported
from kftune.storage.repository import Repository


def stored(directory: Path, studies: list[ImportedStudy], **other: object) -> FileResults:
    """What is read back of them."""
    with Repository.open(f"sqlite:///{directory / 'results.db'}") as repository:
        known = {"file_name": "old", "objective": "test_loss", "source": "somewhere"}
        store_imported(repository, studies, **(known | other))  # type: ignore[arg-type] # settings by name
        return load_results(repository)[0]


@pytest.fixture
def optuna_url(tmp_path: Path) -> str:
    """A study of every kind of dimension and every way for a trial to end."""
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    study = optuna.create_study(study_name="sweep", storage=url)
    for number in range(4):
        trial = study.ask()
        lr = trial.suggest_float("lr", 1e-3, 1, log=True)
        trial.suggest_int("layers", 1, 3)
        if trial.suggest_categorical("optimizer", ["adam", "sgd"]) == "sgd":
            trial.suggest_float("momentum", 0, 0.9)
        trial.report(lr + 1, step=10)
        if number < 2:
            study.tell(trial, lr)
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED if number == 2 else optuna.trial.TrialState.FAIL)
    study.ask()  # still running: not imported
    optuna.create_study(study_name="accuracy", storage=url, direction="maximize").enqueue_trial({})
    optuna.create_study(study_name="two", storage=url, directions=["minimize", "minimize"])
    return url


def read(url: str, name: str, objective: str = "test_loss") -> ImportedStudy:
    return read_optuna_study(url, name, problem="mnist", optimizer="tuned", objective=objective)  # type: ignore[arg-type] # a Literal


def test_an_optuna_study_keeps_its_trials_values_and_box(tmp_path: Path, optuna_url: str) -> None:
    theirs = optuna.load_study(study_name="sweep", storage=optuna_url).trials
    file = stored(tmp_path, [read(optuna_url, "sweep")])
    (study,) = file.studies
    assert (study.record.study, study.record.problem, study.record.optimizer) == ("old/mnist/tuned", "mnist", "tuned")
    assert [trial.trial.state for trial in study.trials] == ["complete", "complete", "pruned", "fail"]
    assert [dict(trial.trial.params) for trial in study.trials] == [trial.params for trial in theirs[:4]]
    assert [trial.trial.value for trial in study.trials[:2]] == [trial.value for trial in theirs[:2]]
    assert [trial.run_values for trial in study.trials[:2]] == [(trial.value,) for trial in theirs[:2]]
    assert study.trials[2].failure is Outcome.PRUNED
    assert study.trials[3].failure is Outcome.CRASHED
    assert study.record.space["dimensions"]["lr"] == {"kind": "float", "low": 1e-3, "high": 1.0, "log": True}
    assert study.record.space["dimensions"]["optimizer"] == {"kind": "categorical", "choices": ["adam", "sgd"]}
    assert study.ranked()[0].trial.value == min(trial.value for trial in theirs[:2])
    assert (study.record.config["imported"], file.untrained) == ("somewhere", {})
    assert study.runs[0].result.updates == 10
    assert len(study.trials) == study.record.n_trials


def test_an_accuracy_that_is_maximised_becomes_an_error(tmp_path: Path, optuna_url: str) -> None:
    study = optuna.load_study(study_name="accuracy", storage=optuna_url)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    with pytest.raises(StorageError, match=r"maximises.*--objective test_error"):
        read(optuna_url, "accuracy")
    file = stored(tmp_path, [read(optuna_url, "accuracy", "test_error")], objective="test_error")
    values = [trial.run_values[0] for trial in file.studies[0].trials]
    assert values == pytest.approx([1 - trial.params["x"] for trial in study.trials])


def test_what_is_no_optuna_study_is_refused(tmp_path: Path, optuna_url: str) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sweep'"):
        read(optuna_url, "sweeep")
    with pytest.raises(StorageError, match="2 objectives"):
        read(optuna_url, "two")
    with pytest.raises(StorageError, match="there is no database"):
        read(f"sqlite:///{tmp_path / 'missing.db'}", "sweep")
    assert not (tmp_path / "missing.db").exists()
    text = tmp_path / "text.db"
    text.write_text("not a database")
    with pytest.raises(StorageError, match="holds no Optuna studies"):
        read(f"sqlite:///{text}", "sweep")


@pytest.mark.parametrize(
    ("name", "cells", "box"),
    [
        ("batch_size", ["16", "32", "64"], ("int", 16, 64, True)),
        ("batch_size", ["16.0", "32.0", "64.0"], ("int", 16, 64, True)),  # as pandas writes a column with empty cells
        ("train_batch_size", ["100", "150"], ("int", 100, 150, True)),
        ("batch_size", ["0.5", "1.0"], ("float", 0.5, 1.0, True)),
        ("inverses_every", ["10.0", "20.0"], ("int", 10, 20, False)),
        ("lr", ["0.01", "0.03", "0.1"], ("float", 0.01, 0.1, True)),
        ("lr", ["0.1", "0.2", "0.3"], ("float", 0.1, 0.3, False)),
        ("lr", ["1.0", "2.0"], ("float", 1.0, 2.0, False)),
        ("depth", ["1", "2", "3"], ("int", 1, 3, False)),
        ("momentum", ["0", "0.5", "0.9"], ("float", 0.0, 0.9, False)),
    ],
)
def test_the_box_of_a_sweep(tmp_path: Path, name: str, cells: list[str], box: tuple[str, float, float, bool]) -> None:
    rows = "".join(f"{cell},{i}.0\n" for i, cell in enumerate(cells))
    (study,) = read_csv_sweep(sweep(tmp_path, f"{name},loss\n{rows}"))
    found = study.space.to_dict()["dimensions"][name]
    assert (found["kind"], found["low"], found["high"], found["log"]) == box
    assert [trial.params[name] for trial in study.trials] == [float(cell) for cell in cells]


def test_the_optuna_database_is_not_changed(tmp_path: Path, optuna_url: str) -> None:
    before = (tmp_path / "optuna.db").read_bytes()
    read(optuna_url, "sweep")
    assert (tmp_path / "optuna.db").read_bytes() == before


SWEEP = """\
problem,optimizer,seed,learning_rate,depth,activation,loss,outcome,train_seconds
mnist,adam,7,0.001,3,relu,0.30,finished,10.5
mnist,adam,8,0.001,3,relu,0.34,finished,10.6
mnist,adam,7,0.1,3,tanh,0.20,finished,10.4
mnist,adam,8,0.1,3,tanh,,failed,1.0
mnist,sgd,7,0.5,3,relu,nan,,2.0
mnist,sgd,7,1,3,relu,0.5,,9
"""


def sweep(directory: Path, text: str = SWEEP, name: str = "sweep.csv") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_of_equal_hyperparameters_are_the_runs_of_a_trial(tmp_path: Path) -> None:
    file = stored(tmp_path, read_csv_sweep(sweep(tmp_path)))
    adam, sgd = file.studies
    assert (adam.record.study, sgd.record.study) == ("old/mnist/adam", "old/mnist/sgd")
    assert [trial.run_values for trial in adam.trials] == [(0.30, 0.34), (0.20, None)]
    assert [trial.trial.value for trial in adam.trials] == [pytest.approx(0.32), None]
    assert [(run.seed, run.repeat) for run in adam.runs] == [(7, 0), (8, 1), (7, 0), (8, 1)]
    assert adam.trials[1].failure is Outcome.CRASHED
    assert adam.runs[0].result.train_seconds == 10.5
    assert dict(adam.trials[0].params) == {"learning_rate": 0.001, "depth": 3, "activation": "relu"}
    assert adam.record.space["fixed"] == {"depth": 3}
    assert adam.record.space["dimensions"] == {
        "learning_rate": {"kind": "float", "low": 0.001, "high": 0.1, "log": True},
        "activation": {"kind": "categorical", "choices": ["relu", "tanh"]},
    }
    assert [trial.failure for trial in sgd.trials] == [Outcome.DIVERGED, None]
    assert sgd.record.space["dimensions"]["learning_rate"] == {"kind": "float", "low": 0.5, "high": 1.0, "log": False}
    assert [trial.trial.number for trial in sgd.ranked()] == [1]


def test_prefixed_columns_are_the_hyperparameters_and_the_rest_is_not(tmp_path: Path) -> None:
    text = "number,value,params_lr,state,datetime_start\n0,0.5,0.1,COMPLETE,2026-01-01\n1,0.4,0.2,PRUNED,2026-01-02\n"
    (study,) = stored(tmp_path, read_csv_sweep(sweep(tmp_path, text))).studies
    assert [dict(trial.params) for trial in study.trials] == [{"lr": 0.1}, {"lr": 0.2}]
    assert [trial.trial.state for trial in study.trials] == ["complete", "pruned"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    text = "id,width,eta,note,final\na,8,0.1,x,2.0\nb,16,0.1,y,1.0\n"
    with pytest.raises(UsageError, match="--value; there are id, width, eta, note, final"):
        read_csv_sweep(sweep(tmp_path, text))
    (study,) = read_csv_sweep(sweep(tmp_path, text), value="final", params=["width", "eta"])
    assert [dict(trial.params) for trial in study.trials] == [{"width": 8}, {"width": 16}]
    assert study.space.fixed == {"eta": 0.1}
    with pytest.raises(UsageError, match="no column 'wdth'; did you mean 'width'"):
        read_csv_sweep(sweep(tmp_path, text), value="final", params=["wdth"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("lr,loss\n", "has no rows"),
        ("lr,loss\n0.1,abc\n", r"line 2: loss: must be a number, got 'abc'"),
        ("lr,loss,state\n0.1,1,finishd\n", r"line 2: unknown outcome 'finishd'"),
        ("trial,lr,loss\n0,0.1,1\n0,0.2,1\n", "line 3: trial 0 has other hyperparameters"),
        ("lr,loss,repeat\n0.1,1,0\n0.1,2,0\n", "line 3: repeat 0 of this trial stands twice"),
        ("lr,loss\n0.1,1,7\n", "line 2: has more cells"),
    ],
)
def test_a_wrong_cell_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_csv_sweep(sweep(tmp_path, text))


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_csv_sweep(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"lr,loss\n\xff\xfe,1\n")
    with pytest.raises(UsageError, match="cannot be read"):
        read_csv_sweep(tmp_path / "binary.csv")


def test_what_kftune_exports_it_takes_back(tmp_path: Path) -> None:
    first = stored(tmp_path, read_csv_sweep(sweep(tmp_path)))
    long_runs([first]).to_csv(tmp_path / "runs.csv", index=False)
    again = tmp_path / "again"
    again.mkdir()
    second = stored(again, read_csv_sweep(tmp_path / "runs.csv"))
    assert [study.record.study for study in second.studies] == [study.record.study for study in first.studies]
    for mine, theirs in zip(second.studies, first.studies, strict=True):
        assert [trial.run_values for trial in mine.trials] == [trial.run_values for trial in theirs.trials]
        assert [dict(trial.params) for trial in mine.trials] == [dict(trial.params) for trial in theirs.trials]
        assert [trial.failure for trial in mine.trials] == [trial.failure for trial in theirs.trials]
        assert mine.record.space["dimensions"].keys() == theirs.record.space["dimensions"].keys()


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    studies = read_csv_sweep(sweep(tmp_path))
    stored(tmp_path, studies)
    with pytest.raises(StorageError, match="holds studies named 'old' already; choose another --name"):
        stored(tmp_path, studies)
    with Repository.open(f"sqlite:///{tmp_path / 'results.db'}") as repository:
        assert [len(study.runs) for study in load_results(repository)[0].studies] == [4, 2]


KILLED = """
import os, signal, sys
from pathlib import Path
import optuna
import kftune.storage.repository as repository
from kftune.storage.importing.csv_sweep import read_csv_sweep
from kftune.storage.importing.studies import store_imported

def deadly(function, calls=[]):
    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

if sys.argv[1] == "trials":
    optuna.Study.add_trial = deadly(optuna.Study.add_trial)
else:
    repository.run_row = deadly(repository.run_row)
with repository.Repository.open("sqlite:///results.db") as opened:
    store_imported(opened, read_csv_sweep(Path("a.csv")), file_name="old", objective="test_loss", source="somewhere")
"""


@pytest.mark.parametrize("where", ["trials", "runs"])
def test_an_import_that_was_killed_left_nothing_and_can_be_made_again(tmp_path: Path, where: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("optimizer,lr,loss\n" + "".join(f"{'sgd' if i % 2 else 'kfac'},{i + 1},{i}.5\n" for i in range(8)))
    killed = subprocess.run([sys.executable, "-c", KILLED, where], cwd=tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    url = f"sqlite:///{tmp_path / 'results.db'}"
    with Repository.open(url, read_only=True) as repository:
        assert (repository.studies(), repository.sessions(), repository.runs()) == ([], [], [])
    left = optuna.get_all_study_summaries(url)
    assert sum(study.n_trials for study in left) == (4 if where == "trials" else 8)
    assert [study.user_attrs["kftune_import"] for study in left] == ["unfinished"] * len(left)
    file = stored(tmp_path, read_csv_sweep(path))
    assert [len(study.trials) for study in file.studies] == [4, 4]
    assert [len(study.runs) for study in file.studies] == [4, 4]
    assert [session.ended_at is None for session in file.sessions] == [False]
    whole = optuna.get_all_study_summaries(url)
    assert {study.study_name: study.n_trials for study in whole} == {"old/imported/kfac": 4, "old/imported/sgd": 4}
    assert {study.user_attrs["kftune_import"] for study in whole} == {"whole"}


def test_another_program_s_optuna_study_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("lr,loss\n0.1,1.0\n")
    url = f"sqlite:///{tmp_path / 'results.db'}"
    with Repository.open(url) as repository:
        theirs = optuna.create_study(study_name="old/imported/imported", storage=repository.optuna_storage)
        theirs.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(StorageError, match="'old/imported/imported' that kftune did not make; choose another --name"):
        stored(tmp_path, read_csv_sweep(path))
    assert [study.n_trials for study in optuna.get_all_study_summaries(url)] == [1]


def test_what_a_failed_run_reached_is_not_the_untrained_model(tmp_path: Path) -> None:
    text = """\
trial,param.lr,value,outcome,train_seconds,updates
0,0.1,0.3,completed,10,100
1,0.2,0.5,completed,10,100
2,0.3,0.05,timed_out,30,70
3,0.4,0.4,diverged,2,20
"""
    file = stored(tmp_path, read_csv_sweep(sweep(tmp_path, text)))
    (study,) = file.studies
    assert file.untrained == {}
    assert [trial.run_values for trial in study.trials] == [(0.3,), (0.5,), (None,), (None,)]
    assert [trial.trial.value for trial in study.trials] == [0.3, 0.5, None, None]
    assert [trial.trial.number for trial in study.ranked()] == [0, 1]
    assert [run.result.outcome for run in study.runs[2:]] == ["timed_out", "diverged"]
    (point,) = study.runs[2].result.curve
    assert study.runs[3].result.curve == ()
    assert (point.update, point.train_seconds, point.test_loss) == (70, 30.0, 0.05)


def test_what_no_completed_run_is_worse_than_is_the_untrained_model(tmp_path: Path) -> None:
    text = "trial,param.lr,value,outcome\n0,0.1,0.3,completed\n1,0.2,2.3,completed\n2,0.3,2.3,diverged\n"
    file = stored(tmp_path, read_csv_sweep(sweep(tmp_path, text)))
    assert file.untrained == {("imported", 0): 2.3}
    assert [trial.trial.value for trial in file.studies[0].trials] == [0.3, 2.3, 2.3]


def test_a_column_of_a_sweep_may_be_called_objective_or_file_name(tmp_path: Path) -> None:
    text = "file_name,objective,lr,loss\na.log,mse,0.1,1.0\nb.log,hinge,0.1,2.0\n"
    (study,) = read_csv_sweep(sweep(tmp_path, text))
    assert dict(study.trials[0].params) == {"file_name": "a.log", "objective": "mse"}
    assert study.objective is None
    with pytest.raises(UsageError, match="no table of kftune's runs, so it has no study file 'a'"):
        read_csv_sweep(sweep(tmp_path, text), file_name="a")
