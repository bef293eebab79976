import json
from datetime import timedelta

import pytest

from kftune.analysis.stored.results import FileResults
from kftune.analysis.trust.health import health, step_anatomies
from kftune.results import PHASES, Calibration, Outcome
from kftune.storage.records import RunRecord
from tests.analysis.memory import file, run, study, trial
from tests.storage.builders import STARTED_AT, session_record

CONFIG = {"budget": {"seconds": 2.0, "tolerance": 0.25}}


def at_speed(slowdown: float, *, minute: int = 0, **other: object) -> RunRecord:
    calibration = Calibration(train_seconds=(0.0, 2.0), seconds=(slowdown, slowdown), reference=1.0)
    return run(1.0, calibration=calibration, started_at=STARTED_AT + timedelta(minutes=minute), **other)  # type: ignore[arg-type] # the rest are run_record's


def disturbed() -> FileResults:
    runs = [at_speed(1.0, minute=3), at_speed(1.3, minute=1, repeat=1)]
    fast = at_speed(0.7, minute=0, trial=1)
    again = at_speed(2.0, minute=2, superseded=True, wall_seconds=5.0)
    unknown = run(1.0, trial=1, repeat=1)
    trials = [trial(0, [1, 1], runs=runs), trial(1, [1, 1], runs=[fast, unknown]), trial(2, [1.0], repeats=2)]
    return file(study(trials, config=CONFIG, superseded=(again,)))


def test_runs_on_a_disturbed_machine_are_flagged_slower_or_faster() -> None:
    found = health(disturbed())
    assert found.tolerance == 0.25
    assert [(reading.slowdown, reading.is_flagged) for reading in found.readings] == [
        (0.7, True),
        (1.3, True),
        (2.0, True),
        (1.0, False),
    ]
    assert [reading.is_superseded for reading in found.flagged] == [False, False, True]
    (kfac,) = found.studies
    assert (kfac.n_flagged, kfac.n_superseded, kfac.n_raced) == (2, 1, 1)


def test_without_a_tolerance_nothing_is_flagged() -> None:
    made = file(study([trial(0, [1.0], runs=[at_speed(9.0)])], config={"budget": {"updates": 20}}))
    assert health(made).tolerance is None
    assert health(made).flagged == []


def test_outcomes_and_overshoot() -> None:
    runs = [run(1.0, overshoot_seconds=0.02), run(1.0, repeat=1, overshoot_seconds=0.04)]
    failed = [run(1.0, trial=1, outcome=Outcome.DIVERGED, overshoot_seconds=0.0), run(None, trial=1, repeat=1)]
    made = study([trial(0, [1, 1], runs=runs), trial(1, [1, None], runs=failed)], confirmed={0: [1.0]})
    (found,) = health(file(made)).studies
    assert found.outcomes == {"completed": 2, "diverged": 1, "crashed": 1}
    assert found.confirm_outcomes == {"completed": 1}
    assert (found.mean_overshoot, found.max_overshoot) == (pytest.approx(0.02), 0.04)  # the confirming run's is 0


def test_the_ledger_counts_every_second_once() -> None:
    """Four counted runs of 0.8 s and one of 5 s that was made again; the slots were busy for 11 s."""
    made = disturbed()
    session = session_record(id=1, ledger={"wall": 8.0, "slots": 2.0, "busy": 11.0, "asking": 0.5, "telling": 0.25})
    found = health(FileResults(name="demo", studies=made.studies, sessions=(session,), untrained={})).ledger
    runs = 5 * 0.8 + 5.0
    assert found.lost_seconds == pytest.approx(5.0 + (11.0 - runs))
    assert found.sampling_seconds == 0.75
    in_runs = found.train_seconds + found.evaluation_seconds + found.setup_seconds + found.warmup_seconds
    assert found.overhead_seconds == pytest.approx(16.0 - in_runs - found.lost_seconds)
    assert found.train_seconds == 5 * 2.0


def test_confirming_runs_are_in_the_ledger() -> None:
    made = study([trial(0, [1.0, 1.0])], confirmed={0: [1.0, 1.0, 1.0]})
    assert health(file(made)).ledger.train_seconds == 5 * 2.0


def test_steps_are_compared_with_sgds() -> None:
    shares = dict.fromkeys(PHASES, 0.0) | {"forward_backward": 1.5, "inversion": 0.5}
    kfac = study([trial(0, [1.0], runs=[run(1.0, phase_seconds=shares)])], optimizer="kfac")
    fast = run(None, curve=[(0.2, 1.0)], outcome=Outcome.COMPLETED)  # 2 updates in 0.2 s
    quick = study([trial(0, [1.0], runs=[fast])], optimizer="my sgd", identity={"optimizer": "sgd"})
    quicker = run(None, curve=[(2.0, 1.0)], outcome=Outcome.COMPLETED)
    found = {anatomy.optimizer: anatomy for anatomy in step_anatomies(file(kfac, quick))}
    assert found["kfac"].phase_shares["inversion"] == 0.25
    assert sum(found["kfac"].phase_shares.values()) == pytest.approx(1)
    assert found["kfac"].seconds_per_update == pytest.approx(0.1)
    assert found["my sgd"].against_sgd == 1.0
    assert found["kfac"].against_sgd == pytest.approx(1.0)
    assert found["kfac"].examples_per_update == 640
    without = file(study([trial(0, [1.0], runs=[quicker])]), study([trial(0, [None])], optimizer="adamw"))
    (alone,) = step_anatomies(without)
    assert (alone.optimizer, alone.against_sgd, alone.n_runs) == ("kfac", None, 1)


def test_it_is_plain_data_for_json() -> None:
    plain = json.loads(json.dumps(health(disturbed()).to_dict()))
    assert plain["readings"][0]["started_at"] == "2026-03-01T12:30:15.250000+00:00"
    assert plain["ledger"]["lost_seconds"] == 5.0
