"""Attempts at a run that is lost, disturbed and cut off, and what the machine's speed is compared with."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from kftune.results import Calibration, RunResult
from kftune.storage.records import Purpose
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig
from kftune.study.executors import Finished, LocalExecutor, Lost, RunEvent
from kftune.study.sessions.calibrating import MachineSpeed
from kftune.study.sessions.opening import study_records
from kftune.study.sessions.reporting import Reporter
from kftune.study.sessions.session import Interrupt
from tests.storage.builders import run_record, run_result, session_record
from tests.study.test_confirm import confirm
from tests.study.test_runner import config, run

KEYS = {"budget": {"seconds": 0.05}, "optimizers": ["sgd"], "trials": 4, "repeats": 1}


class _Unlucky(LocalExecutor):
    """Says of the n-th finished runs that their worker died, or the machine was slow; worker and runs are real."""

    lost: tuple[int, ...] = ()
    slow: tuple[int, ...] = ()
    n_finished = 0

    def poll(self, timeout_seconds: float) -> list[RunEvent]:
        return [self._changed(event) for event in super().poll(timeout_seconds)]

    def _changed(self, event: RunEvent) -> RunEvent:
        if not isinstance(event, Finished):
            return event
        type(self).n_finished += 1
        if self.n_finished in self.lost:
            return Lost(event.slot, "the worker was ended by SIGKILL", 1.0)
        seconds = 2.0 if self.n_finished in self.slow else 1.0
        calibration = Calibration(train_seconds=(0.0, 0.1), seconds=(seconds, seconds))
        return replace(event, result=replace(event.result, calibration=calibration))


class _StopsAtDisturbance(Reporter):
    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt

    def message(self, text: str) -> None:
        if text.endswith("it will be run again"):
            self.interrupt.request()


def unlucky(monkeypatch: pytest.MonkeyPatch, **when: tuple[int, ...]) -> Interrupt:
    monkeypatch.setattr("kftune.study.executors.LocalExecutor", type("Executor", (_Unlucky,), when))
    return Interrupt()


def attempts(study: StudyConfig, purpose: Purpose) -> list[tuple[int, int, int, bool]]:
    with Repository.open(study.storage) as repository:
        return sorted(
            (run.trial, run.repeat, run.attempt, run.superseded)
            for superseded in (False, True)
            for run in repository.runs(purpose=purpose, superseded=superseded)
        )


def test_a_run_that_was_lost_then_disturbed_then_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = config(tmp_path, **KEYS)
    interrupt = unlucky(monkeypatch, lost=(4,), slow=(5,))
    assert run(study, _StopsAtDisturbance(interrupt), interrupt).outcome == "interrupted"
    assert attempts(study, "search")[-1] == (3, 0, 2, True)
    assert run(study).outcome == "complete"
    assert attempts(study, "search")[-2:] == [(3, 0, 2, True), (3, 0, 3, False)]


def test_a_confirming_run_that_was_lost_then_disturbed_then_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = config(tmp_path, **KEYS)
    interrupt = unlucky(monkeypatch, lost=(5,), slow=(6,))
    assert run(study).outcome == "complete"
    reporter = _StopsAtDisturbance(interrupt)
    assert confirm(study, top=1, seeds=2, reporter=reporter, interrupt=interrupt).outcome == "interrupted"
    assert confirm(study, top=1, seeds=2).outcome == "complete"
    assert [found[1:] for found in attempts(study, "confirm")] == [(0, 2, True), (0, 3, False), (1, 1, False)]


def test_the_usual_speed_is_that_of_runs_with_as_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    study = config(tmp_path, threads="auto", optimizers=["sgd"], budget={"seconds": 1.0})

    def result(seconds: float) -> RunResult:
        return run_result(calibration=Calibration(train_seconds=(0.0, 0.1), seconds=(seconds, seconds)))

    with Repository.open(study.storage) as repository:
        repository.register(study_records(study, {"runner/digits_mlp/sgd": 9}))
        for trial, (devices, seconds) in enumerate([(["cpu"], 1.0), (["cpu", "cpu"], 2.0)] * 3):
            session = session_record("runner", host=socket.gethostname(), devices=devices)
            record = run_record(repository.begin_session(session), trial, study="runner/digits_mlp/sgd")
            repository.add_run(replace(record, result=result(seconds)), session_ledger={})
        for threads, usual in ((6, 1.0), (3, 2.0)):
            speed = MachineSpeed(study, repository=repository, threads=threads)
            calibration = speed.judged(result(usual)).calibration
            assert calibration is not None
            assert (calibration.reference, calibration.slowdown) == (usual, 1.0)
