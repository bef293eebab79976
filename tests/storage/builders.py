"""Records to store, with every field settable."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from kftune.results import PHASES, Calibration, CurvePoint, Outcome, RunResult
from kftune.storage.records import RunRecord, SessionRecord, StudyRecord

STARTED_AT = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)


def study_record(
    file_name: str = "demo", problem: str = "digits", optimizer: str = "kfac", **other: Any
) -> StudyRecord:
    record = StudyRecord(
        study=f"{file_name}/{problem}/{optimizer}",
        file_name=file_name,
        problem=problem,
        optimizer=optimizer,
        identity={"budget": {"seconds": 1.0, "updates": None}, "repeats": 2, "problem": {"name": problem, "args": {}}},
        config={"name": file_name, "repeats": 2},
        space={"dimensions": {"lr": {"kind": "float", "low": 1e-4, "high": 1.0, "log": True}}, "fixed": {}},
        n_trials=24,
    )
    return replace(record, **other)


def session_record(file_name: str = "demo", **other: Any) -> SessionRecord:
    record = SessionRecord(
        id=None,
        file_name=file_name,
        started_at=STARTED_AT,
        ended_at=None,
        host="node17",
        devices=["cpu", "cpu"],
        versions={"kftune": "0.1.0", "torch": "2.13.0"},
        command="kftune run demo.yaml",
        ledger={"wall": 0.0, "slots": 2.0},
    )
    return replace(record, **other)


def curve(n: int = 5) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(
            train_seconds=0.1 * i,
            update=10 * i,
            train_loss=1 / (i + 1),
            test_loss=1.1 / (i + 1),
            accuracy=0.1 * i,
            readings={"lr": 0.1, "kl_clip_active": i / n},
        )
        for i in range(n)
    )


def run_result(**other: Any) -> RunResult:
    result = RunResult(
        outcome=Outcome.COMPLETED,
        curve=curve(),
        train_seconds=0.4,
        overshoot_seconds=0.01,
        evaluation_seconds=0.05,
        setup_seconds=0.3,
        warmup_seconds=0.02,
        phase_seconds=dict.fromkeys(PHASES, 0.4 / len(PHASES)),
        updates=40,
        examples=40 * 128,
        peak_memory_bytes=3 * 2**30,
        device_name="A CPU @ 2 GHz",
        calibration=Calibration(train_seconds=(0.0, 0.4), seconds=(0.002, 0.003), reference=0.0025),
        treatments={"Kronecker-factored": 6400, "SGD": 128},
    )
    return replace(result, **other)


def run_record(session_id: int, trial: int = 0, repeat: int = 0, **other: Any) -> RunRecord:
    record = RunRecord(
        study="demo/digits/kfac",
        trial=trial,
        repeat=repeat,
        seed=2**32 - 1,
        params={"lr": 0.1, "batch_size": 128, "fisher": "mc", "bias": True, "nothing": None},
        session_id=session_id,
        started_at=STARTED_AT,
        wall_seconds=0.8,
        attempt=1,
        device="cpu",
        result=run_result(),
    )
    return replace(record, **other)
