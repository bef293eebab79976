"""Studies from Python, and the example of a problem of one's own from a directory outside the repository."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import kftune
from kftune.errors import ConfigError, UsageError, UserCodeError
from kftune.problems import PROBLEMS
from tests.processes import warm

OWN_PROBLEM = Path(__file__).parents[2] / "studies" / "own_problem"
KEYS = {"problems": ["digits_mlp"], "budget": {"updates": 5}, "trials": 2, "startup_trials": 1, "sampler": "tpe"}
SMALL = ("budget={updates: 3}", "trials=2", "repeats=1", "evaluation.points=1")


def test_a_study_of_keys_runs_and_gives_frames(tmp_path: Path) -> None:
    study = kftune.Study(
        name="mine", optimizers=["sgd", "kfac"], storage=f"sqlite:///{tmp_path / 'mine.db'}", repeats=2, **KEYS
    )
    results = study.run(progress=False, workers=1)
    assert len(results.trials()) == 4
    runs = results.runs()
    assert len(runs) == 8
    assert set(runs["updates"]) == {5}
    curves = results.curves()
    assert set(curves["optimizer"]) == {"sgd", "kfac"}
    best = results.best(top=2)
    assert list(best["rank"]) == [1, 2, 1, 2]
    lowest = results.trials().groupby("optimizer")["value"].min()
    assert best[best["rank"] == 1].set_index("optimizer")["value"].to_dict() == lowest.to_dict()
    confirmed = study.confirm(top=1, seeds=2, progress=False, workers=1)
    assert len(confirmed.file.confirmations) == 4
    (winner,) = confirmed.winner().to_dict("records")
    assert (winner["problem"], winner["optimizer"] in ("sgd", "kfac")) == ("digits_mlp", True)
    assert winner["confirmed"] > 0
    assert len(confirmed.runs()) == 8  # tuned and confirmed runs do not mix


def test_the_progress_can_be_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "seen.yaml"
    path.write_text(
        "name: seen\nproblems: [digits_mlp]\noptimizers: [sgd]\nbudget: {updates: 2}\ntrials: 1\ndevices: cpu\n"
        f"storage: {tmp_path / 'seen.db'}\n"
    )
    kftune.run_study(path, overrides=["repeats=1"])
    assert "[1/1 runs, done] sgd, trial 0" in capsys.readouterr().out


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="either a study file or its keys"):
        kftune.Study()
    with pytest.raises(UsageError, match="either a study file or its keys"):
        kftune.Study("study.yaml", name="x")
    with pytest.raises(ConfigError, match="Study: trails: unknown key 'trails'; did you mean 'trials'"):
        kftune.Study(name="x", optimizers=["sgd"], trails=3, **KEYS)
    with pytest.raises(UsageError, match="must stand in a module of its own"):
        kftune.Study(name="x", optimizers=["sgd"], **{**KEYS, "problems": [lambda: None]})
    with pytest.raises(AttributeError, match="no attribute 'study_'"):
        _ = kftune.study_


def test_a_function_stands_for_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(OWN_PROBLEM / "my_problem.py", tmp_path / "my_functions.py")
    monkeypatch.syspath_prepend(tmp_path)
    import my_functions  # type: ignore[import-not-found]  # made by this test

    study = kftune.Study(
        name="x",
        optimizers=["sgd"],
        storage=str(tmp_path / "x.db"),
        **{**KEYS, "problems": [my_functions.make_problem]},
    )
    assert study.config.problems[0].target == "my_functions:make_problem"
    assert len(study.run(progress=False, workers=1).runs()) == 4


def test_a_users_bug_is_raised_with_its_traceback(tmp_path: Path) -> None:
    text = (OWN_PROBLEM / "my_problem.py").read_text()
    (tmp_path / "broken.py").write_text(
        text.replace("return self.straight(inputs)", "raise KeyError('mine')\n        return self.straight(inputs)")
    )
    (tmp_path / "s.yaml").write_text(
        "name: s\nproblems: ['broken:make_problem']\noptimizers: [sgd]\nbudget: {updates: 2}\ntrials: 4\ndevices: cpu\n"
        f"storage: {tmp_path / 's.db'}\n"
    )
    with pytest.raises(UserCodeError, match="KeyError: 'mine'"):
        kftune.run_study(tmp_path / "s.yaml", progress=False)


@pytest.mark.parametrize("how", ["command", "python"])
def test_the_example_runs_from_a_directory_outside_the_repository(tmp_path: Path, how: str) -> None:
    shutil.copytree(OWN_PROBLEM, tmp_path / "example", ignore=shutil.ignore_patterns("*.db*", "__pycache__"))
    if how == "command":
        options = [word for override in SMALL for word in ("--set", override)]
        command = [sys.executable, "-m", "kftune", "run", "example/own_problem.yaml", *options]
    else:
        script = tmp_path / "example" / "own_problem.py"
        script.write_text(script.read_text().replace('.yaml"))', f'.yaml"), overrides={SMALL!r})'))
        command = [sys.executable, "example/own_problem.py"]
    done = warm.run(command, cwd=tmp_path, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    for optimizer in ("sgd", "kfac", "two_level_kfac"):
        assert optimizer in done.stdout
    assert (tmp_path / "own_problem.db").exists()
    assert "branches" not in PROBLEMS.names()
