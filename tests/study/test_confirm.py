"""Confirming runs, on a real database and real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from kftune.errors import UsageError
from kftune.results import RunResult
from kftune.storage.repository import Repository, RunRecord
from kftune.study.config import StudyConfig
from kftune.study.sessions.confirm import confirm_seed, confirm_studies
from kftune.study.sessions.reporting import Reporter
from kftune.study.sessions.session import Interrupt, RunSummary
from kftune.study.sessions.trials import run_seed
from tests.study.test_runner import Recorder, RunKey, config, run, runs_of


def confirm(
    study: StudyConfig,
    *,
    top: int = 2,
    seeds: int = 3,
    budget_factors: tuple[float, ...] = (1.0,),
    reporter: Reporter | None = None,
    interrupt: Interrupt | None = None,
) -> RunSummary:
    with Repository.open(study.storage) as repository:
        return confirm_studies(
            study,
            repository=repository,
            devices=["cpu"],
            data_dir=Path("no-data"),
            top=top,
            seeds=seeds,
            budget_factors=budget_factors,
            reporter=reporter,
            interrupt=interrupt,
        )


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The database of a study that is complete."""
    directory = tmp_path_factory.mktemp("searched")
    assert run(config(directory)).outcome == "complete"
    return (directory / "runner.db").read_bytes()


@pytest.fixture
def study(search: bytes, tmp_path: Path) -> StudyConfig:
    """A study that is complete."""
    (tmp_path / "runner.db").write_bytes(search)
    return config(tmp_path)


def confirmations(study: StudyConfig) -> list[RunRecord]:
    with Repository.open(study.storage) as repository:
        return repository.runs(purpose="confirm")


def best_trials(study: StudyConfig, optimizer: str, top: int) -> list[int]:
    with Repository.open(study.storage) as repository:
        trials = repository.trials(f"{study.name}/digits_mlp/{optimizer}")
    return [trial.number for trial in sorted(trials, key=lambda trial: trial.value or 0.0)[:top]]


def test_the_best_are_trained_again_on_fresh_seeds_common_to_all(study: StudyConfig) -> None:
    before = runs_of(study)
    recorder = Recorder()
    summary = confirm(study, reporter=recorder)
    assert (summary.outcome, summary.n_runs) == ("complete", 2 * 2 * 3)
    assert runs_of(study) == before  # the search is as it was
    found = confirmations(study)
    params = {(run.study, run.trial): run.params for run in before}
    for optimizer in ("sgd", "adamw"):
        mine = [run for run in found if run.study.endswith(f"/{optimizer}")]
        assert {run.trial for run in mine} == set(best_trials(study, optimizer, 2))
        assert sorted((run.trial, run.repeat) for run in mine) == sorted(
            (trial, repeat) for trial in best_trials(study, optimizer, 2) for repeat in range(3)
        )
        assert all(run.params == params[run.study, run.trial] for run in mine)
    assert {run.seed for run in found if run.repeat == 1} == {confirm_seed(0, 1)}
    assert not {run.seed for run in found} & {run_seed(0, repeat) for repeat in range(100)}
    assert [len(set(total)) for total in zip(*[(t.n_trials, t.n_runs) for t in recorder.totals], strict=True)] == [1, 1]
    assert len(recorder.trials) == 4
    optimizers = [key.study.split("/")[-1] for key in recorder.runs]
    assert optimizers == ["sgd", "adamw"] * 6  # they take turns


def test_nothing_is_confirmed_twice_and_more_can_be_asked_for(study: StudyConfig) -> None:
    confirm(study, top=1, seeds=2)
    before = confirmations(study)
    assert confirm(study, top=1, seeds=2).outcome == "already_complete"
    assert confirm(study, top=2, seeds=3, budget_factors=(1.0, 3.0)).n_runs == 2 * (2 * 3 - 2) + 2 * 2 * 3
    longer = [run for run in confirmations(study) if run.budget_factor == 3.0]
    assert {run.result.updates for run in longer} == {60}
    assert {run.result.updates for run in before} == {20}
    assert [run for run in confirmations(study) if run in before] == before


def test_an_interrupted_confirmation_goes_on(study: StudyConfig) -> None:
    class Interrupting(Reporter):
        def run_finished(self, key: RunKey, result: RunResult) -> None:
            interrupt.request()

    interrupt = Interrupt()
    summary = confirm(study, reporter=Interrupting(), interrupt=interrupt)
    assert (summary.outcome, summary.n_runs) == ("interrupted", 1)
    assert confirm(study).n_runs == 11


def test_a_study_without_a_good_trial_is_left_out(tmp_path: Path) -> None:
    space = {"lr": {"low": 1e19, "high": 1e20, "log": True}}
    bad = {"name": "sgd", "label": "bad", "space": space}
    study = config(tmp_path, optimizers=[bad, "adamw"], trials=1, repeats=1)
    run(study)
    recorder = Recorder()
    assert confirm(study, top=1, seeds=1, reporter=recorder).n_runs == 1
    assert recorder.messages == ["runner/digits_mlp/bad has no trial that ended well, so it is left out"]
    assert [run.study for run in confirmations(study)] == ["runner/digits_mlp/adamw"]
    alone = config(tmp_path, name="alone", optimizers=[bad], trials=1, repeats=1)
    run(alone)
    with pytest.raises(UsageError, match="no study of alone has a trial that ended well"):
        confirm(alone)


def test_a_budget_that_is_named_twice_is_confirmed_once(study: StudyConfig) -> None:
    summary = confirm(study, top=1, seeds=1, budget_factors=(1.0, 1.0))
    assert (summary.outcome, summary.n_runs) == ("complete", 2)


def test_a_study_that_is_not_stored_is_refused(tmp_path: Path) -> None:
    study = config(tmp_path)
    with Repository.open(study.storage):
        pass
    run(config(tmp_path, optimizers=["sgd"]))
    with pytest.raises(UsageError, match="holds no study 'runner/digits_mlp/adamw'"):
        confirm(study)
    with pytest.raises(UsageError, match="top must be at least 1, got 0"):
        confirm(study, top=0)
    with pytest.raises(UsageError, match="budget factors must be above 0, got -1"):
        confirm(study, budget_factors=(-1.0,))
    assert confirmations(study) == []
