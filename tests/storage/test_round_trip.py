import math
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone

import optuna
import pytest

from kftune.errors import StorageError
from kftune.results import CurvePoint, Outcome, RunResult
from kftune.storage._types import from_json, to_json
from kftune.storage.repository import Repository
from tests.storage.builders import STARTED_AT, run_record, run_result, session_record, study_record

NOT_FINITE = (math.nan, math.inf, -math.inf)


def test_a_run_comes_back_as_it_was(repository: Repository) -> None:
    session_id = repository.begin_session(session_record())
    record = run_record(session_id, trial=3, repeat=1, attempt=2)
    repository.add_run(record, session_ledger={"wall": 1.0})
    assert repository.runs() == [record]
    defaults = run_result()
    for field in fields(RunResult):  # the builder leaves nothing at its default, so that nothing can be forgotten
        if field.name not in ("outcome", "message"):
            assert getattr(defaults, field.name) != field.default


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_can_be_stored(repository: Repository, outcome: Outcome) -> None:
    record = run_record(repository.begin_session(session_record()), result=run_result(outcome=outcome, message="why"))
    repository.add_run(record, session_ledger={})
    assert repository.runs()[0].result.outcome is outcome


@pytest.mark.parametrize("value", NOT_FINITE)
def test_floats_that_are_not_finite_survive(repository: Repository, value: float) -> None:
    points = (
        CurvePoint(train_seconds=0.0, update=0, train_loss=value, test_loss=2.5, accuracy=value),
        CurvePoint(train_seconds=value, update=1, train_loss=2.5, test_loss=value, accuracy=None),
    )
    result = run_result(curve=points, train_seconds=value, phase_seconds={"update": value})
    record = run_record(
        repository.begin_session(session_record()), params={"lr": value, "deep": 1.0}, wall_seconds=value, result=result
    )
    repository.add_run(record, session_ledger={"wall": value})
    # NaN is unequal to itself, but its repr is not.
    assert repr(repository.runs()) == repr([record])
    assert repr(repository.sessions()[0].ledger) == repr({"wall": value})


def test_a_missing_accuracy_is_not_a_nan_one(repository: Repository) -> None:
    points = tuple(
        CurvePoint(train_seconds=0.0, update=i, train_loss=1.0, test_loss=1.0, accuracy=accuracy)
        for i, accuracy in enumerate((None, math.nan))
    )
    record = run_record(repository.begin_session(session_record()), result=run_result(curve=points))
    repository.add_run(record, session_ledger={})
    first, second = repository.runs()[0].result.curve
    assert first.accuracy is None
    assert second.accuracy is not None
    assert math.isnan(second.accuracy)


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        ("ReLU → Grüße 🙂", "ReLU → Grüße 🙂"),
        ("a NUL \x00 in it", "a NUL \\x00 in it"),
        ("a file name \udcff from another encoding", "a file name \\udcff from another encoding"),
    ],
)
def test_any_text_can_be_stored(repository: Repository, message: str, stored: str) -> None:
    record = run_record(repository.begin_session(session_record()), result=run_result(message=message))
    repository.add_run(record, session_ledger={})
    assert repository.runs()[0].result.message == stored


def test_without_curves_all_else_is_the_same(repository: Repository) -> None:
    record = run_record(repository.begin_session(session_record()))
    repository.add_run(record, session_ledger={})
    assert repository.runs(curves=False) == [replace(record, result=replace(record.result, curve=()))]


def test_runs_come_by_study_trial_and_repeat(repository: Repository) -> None:
    other = study_record(optimizer="sgd")
    repository.register([other])
    session_id = repository.begin_session(session_record())
    keys = [(other.study, 0, 0), ("demo/digits/kfac", 1, 1), ("demo/digits/kfac", 1, 0), ("demo/digits/kfac", 0, 0)]
    for study, trial, repeat in keys:
        repository.add_run(run_record(session_id, trial, repeat, study=study), session_ledger={})
    expected = [keys[3], keys[2], keys[1], keys[0]]
    assert [(run.study, run.trial, run.repeat) for run in repository.runs()] == expected
    assert [run.study for run in repository.runs(other.study)] == [other.study]
    assert len(repository.runs(other.study)[0].result.curve) == 5


def test_a_repeat_is_stored_once(repository: Repository) -> None:
    session_id = repository.begin_session(session_record())
    repository.add_run(run_record(session_id, 2, 1), session_ledger={"wall": 1.0})
    with pytest.raises(StorageError, match=r"repeat 1 of trial 2 of demo/digits/kfac is stored already"):
        repository.add_run(run_record(session_id, 2, 1, wall_seconds=99.0), session_ledger={"wall": 2.0})
    assert [run.wall_seconds for run in repository.runs()] == [0.8]
    assert repository.sessions()[0].ledger == {"wall": 1.0}  # nothing of the refused transaction is left


def test_what_confirms_and_what_was_made_again_stand_apart(repository: Repository) -> None:
    session_id = repository.begin_session(session_record())
    counted = run_record(session_id, 2, 1, attempt=2)
    discarded = run_record(session_id, 2, 1, superseded=True)
    confirming = [
        run_record(session_id, 2, 1, purpose="confirm", budget_factor=factor, seed=7) for factor in (1.0, 3.0)
    ]
    for record in (discarded, counted, *confirming):
        repository.add_run(record, session_ledger={})
    assert repository.runs() == [counted]
    assert repository.runs(superseded=True) == [discarded]
    assert repository.runs(purpose="confirm") == confirming
    with pytest.raises(StorageError, match="is stored already"):
        repository.add_run(run_record(session_id, 2, 1, purpose="confirm", attempt=2), session_ledger={})


def test_a_micro_batch_size_is_kept(repository: Repository) -> None:
    assert repository.micro_batch("digits kfac cpu") is None
    repository.save_micro_batch("digits kfac cpu", 64, found_at=STARTED_AT)
    repository.save_micro_batch("digits kfac cpu", 48, found_at=STARTED_AT)
    assert repository.micro_batch("digits kfac cpu") == 48
    assert repository.micro_batch("digits sgd cpu") is None


def test_a_run_needs_its_study_and_its_session(repository: Repository) -> None:
    session_id = repository.begin_session(session_record())
    with pytest.raises(StorageError, match="no study 'demo/digits/foof'"):
        repository.add_run(run_record(session_id, study="demo/digits/foof"), session_ledger={})
    with pytest.raises(StorageError, match="no session 77"):
        repository.add_run(run_record(77), session_ledger={})
    assert repository.runs() == []


def test_sessions_keep_their_ledger_and_their_end(repository: Repository) -> None:
    first = repository.begin_session(session_record())
    second = repository.begin_session(session_record("other"))
    repository.add_run(run_record(first), session_ledger={"wall": 2.0, "slots": 2.0})
    assert repository.sessions("demo") == [session_record(id=first, ledger={"wall": 2.0, "slots": 2.0})]
    ended_at = STARTED_AT + timedelta(seconds=90)
    repository.save_session(first, ledger={"wall": 3.0}, ended_at=ended_at)
    repository.save_session(first, ledger={"wall": 4.0})  # an end once stored stays
    assert repository.sessions() == [
        session_record(id=first, ledger={"wall": 4.0}, ended_at=ended_at),
        session_record("other", id=second),
    ]
    with pytest.raises(StorageError, match="no session 99"):
        repository.save_session(99, ledger={})


def test_times_keep_their_instant_and_must_have_a_zone(repository: Repository) -> None:
    tokyo = datetime(2026, 1, 1, 9, 0, tzinfo=timezone(timedelta(hours=9)))
    repository.begin_session(session_record(started_at=tokyo))
    stored = repository.sessions()[0].started_at
    assert stored == tokyo
    assert stored.tzinfo is UTC
    with pytest.raises(StorageError, match="needs a zone"):
        repository.begin_session(session_record(started_at=datetime(2026, 1, 1)))


def test_studies_come_in_order_and_by_file(repository: Repository) -> None:
    others = [study_record("zeta"), study_record("alpha", optimizer="sgd")]
    repository.register(others)
    assert repository.studies() == [study_record(), *others]
    assert repository.studies("alpha") == others[1:]
    assert repository.file_names() == ["demo", "zeta", "alpha"]


def test_trials_are_optunas(repository: Repository) -> None:
    study = optuna.load_study(study_name="demo/digits/kfac", storage=repository.optuna_storage)
    for _ in range(3):
        trial = study.ask()
        trial.suggest_float("damping/lr", 1e-4, 1.0, log=True)
        trial.suggest_categorical("fisher", ("mc", "exact"))
    study.tell(0, 0.25)
    study.tell(1, state=optuna.trial.TrialState.FAIL)
    trials = repository.trials("demo/digits/kfac")
    assert [(trial.number, trial.state, trial.value) for trial in trials] == [
        (0, "complete", 0.25),
        (1, "fail", None),
        (2, "running", None),
    ]
    assert list(trials[0].params) == ["damping/lr", "fisher"]
    assert trials[0].datetime_complete is not None
    assert trials[2].datetime_start is not None
    assert trials[2].datetime_complete is None
    with pytest.raises(StorageError, match="no study 'nowhere'"):
        repository.trials("nowhere")


def test_another_process_sees_trials_through_the_cache(repository: Repository, url: str) -> None:
    with Repository.open(url) as reader:
        assert reader.trials("demo/digits/kfac") == []
        study = optuna.load_study(study_name="demo/digits/kfac", storage=repository.optuna_storage)
        study.ask()
        assert [trial.state for trial in reader.trials("demo/digits/kfac")] == ["running"]
        study.tell(0, 1.0)
        assert [trial.state for trial in reader.trials("demo/digits/kfac")] == ["complete"]


def test_optuna_opens_the_database_by_its_url(repository: Repository, url: str) -> None:
    repository.close()
    study = optuna.load_study(study_name="demo/digits/kfac", storage=url)
    study.optimize(lambda trial: trial.suggest_float("lr", 0.0, 1.0), n_trials=2)
    assert study.direction is optuna.study.StudyDirection.MINIMIZE
    assert [trial.state for trial in repository.trials("demo/digits/kfac")] == ["complete"] * 2


@pytest.mark.parametrize("plain", [{"a": [1, 2.5, None, True, "x"]}, {"$float": "no float", "b": 1}, [], {}])
def test_json_is_strict_and_reversible(plain: object) -> None:
    assert from_json(to_json(plain)) == plain


def test_json_never_holds_what_other_readers_refuse() -> None:
    text = to_json({"loss": [math.nan, math.inf]})
    assert "NaN" not in text
    assert "Infinity" not in text
    assert repr(from_json(text)) == repr({"loss": [math.nan, math.inf]})
