import json
from datetime import timedelta
from typing import Any

import optuna
import pytest

from kftune.analysis.stored.results import load_results
from kftune.analysis.stored.status import FileStatus, file_statuses
from kftune.results import Outcome
from kftune.storage.repository import Repository
from tests.analysis.builders import add_trial, result
from tests.analysis.conftest import CONFIG, KFAC
from tests.storage.builders import STARTED_AT, run_record, session_record, study_record


def status_of(repository: Repository) -> FileStatus:
    (status,) = file_statuses(load_results(repository, curves=False))
    return status


def test_trials_and_runs_are_counted(filled: Repository) -> None:
    optuna.load_study(study_name=KFAC, storage=filled.optuna_storage).ask()
    kfac, sgd = status_of(filled).studies
    assert (kfac.n_trials, kfac.n_finished, kfac.n_failed, kfac.n_running, kfac.n_runs) == (8, 6, 1, 1, 12)
    assert kfac.outcomes == {"completed": 8, "diverged": 1, "out_of_memory": 2, "crashed": 1}
    assert (kfac.best_value, kfac.best_trial) == (0.2, 1)
    assert (sgd.n_finished, sgd.n_failed, sgd.best_value) == (1, 0, 0.85)
    assert not status_of(filled).is_complete


def test_a_file_is_complete_with_its_trials(repository: Repository) -> None:
    for study in ("demo/digits/kfac", "demo/digits/sgd"):
        for number in range(8):
            assert not status_of(repository).is_complete
            add_trial(repository, study, number, [result(0.5)], value=0.5)
    assert status_of(repository).is_complete


def test_the_ledger_adds_up(repository: Repository) -> None:
    seconds: dict[str, Any] = {
        "train_seconds": 1.0,
        "evaluation_seconds": 0.2,
        "setup_seconds": 0.3,
        "warmup_seconds": 0.1,
    }
    second = repository.begin_session(session_record(devices=["cpu"]))
    for number in range(5):
        add_trial(repository, KFAC, number, [result(0.5, **seconds)], value=0.5, session_id=second)
    repository.save_session(1, ledger={"wall": 2.0, "slots": 2.0, "worker_start": 1.0, "asking": 0.25, "storing": 0.5})
    repository.save_session(
        second, ledger={"wall": 6.0, "slots": 1.0, "asking": 0.25}, ended_at=STARTED_AT + timedelta(minutes=1)
    )
    status = status_of(repository)
    ledger = status.ledger
    assert (ledger.wall_seconds, ledger.slot_seconds) == (8.0, 2 * 2.0 + 6.0)
    assert (ledger.asking_seconds, ledger.telling_seconds, ledger.storing_seconds) == (0.5, 0.0, 0.5)
    # 5 runs of 1.6 s and 1 s to start the workers, of 10 slot-seconds.
    assert ledger.overhead_seconds == pytest.approx(10 - 5 * 1.6 - 1)
    assert ledger.overhead_share == pytest.approx(0.1)
    assert (status.n_sessions, status.started_at) == (2, STARTED_AT)
    assert status.ended_at == STARTED_AT + timedelta(minutes=1)


def test_no_session_no_share(repository: Repository) -> None:
    repository.save_session(1, ledger={})
    assert status_of(repository).ledger.overhead_share is None


def test_it_is_plain_data_for_json(filled: Repository) -> None:
    plain = json.loads(json.dumps(status_of(filled).to_dict()))
    assert plain["name"] == "demo"
    assert plain["started_at"] == "2026-03-01T12:30:15.250000+00:00"
    assert plain["ended_at"] is None
    assert plain["studies"][0]["outcomes"]["diverged"] == 1
    assert plain["studies"][0]["is_complete"] is False
    assert plain["ledger"]["overhead_share"] is None


def test_runs_of_another_files_sessions_are_that_files_seconds(repository: Repository) -> None:
    """As after ``resume --widen``: the trials begin the new file's study, the sessions stay the old one's."""
    repository.register([study_record("demo-wide", config=CONFIG | {"name": "demo-wide"})])
    add_trial(repository, KFAC, 0, [result(0.5)], value=0.5)
    add_trial(repository, "demo-wide/digits/kfac", 0, [result(0.5)], value=0.5)
    repository.add_run(run_record(1, 0, 7, study="demo-wide/digits/kfac", superseded=True), session_ledger={})
    second = repository.begin_session(session_record("demo-wide"))
    add_trial(repository, "demo-wide/digits/kfac", 1, [result(0.4)], value=0.4, session_id=second)
    repository.save_session(second, ledger={"wall": 2.0, "slots": 1.0, "busy": 0.8})
    old, new = file_statuses(load_results(repository, curves=False))
    one = result(0.5)
    assert old.ledger.train_seconds == new.ledger.train_seconds == one.train_seconds
    assert new.ledger.lost_seconds == 0
    in_run = one.train_seconds + one.evaluation_seconds + one.setup_seconds + one.warmup_seconds
    assert new.ledger.overhead_seconds == pytest.approx(2.0 - in_run)
    assert [study.n_runs for study in new.studies] == [2]  # it begins with what the old one found


@pytest.mark.parametrize("outcome", [Outcome.TIMED_OUT, Outcome.CRASHED, Outcome.OUT_OF_MEMORY])
def test_what_a_run_that_was_cut_off_took_beyond_its_last_point_is_lost(
    repository: Repository, outcome: Outcome
) -> None:
    known = {"train_seconds": 1.0, "evaluation_seconds": 0.2, "setup_seconds": 0.3, "warmup_seconds": 0.1}
    record = run_record(1, 0, 0, study=KFAC, wall_seconds=60.0, result=result(0.5, outcome=outcome, **known))
    repository.add_run(record, session_ledger={"wall": 61.0, "slots": 1.0, "busy": 60.0})
    add_trial(repository, KFAC, 0, [], value=None)
    ledger = status_of(repository).ledger
    assert ledger.lost_seconds == pytest.approx(60.0 - 1.6)
    assert ledger.overhead_seconds == pytest.approx(1.0)
