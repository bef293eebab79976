"""The machine's speed during a run, on a machine that really is slowed down."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from kftune.results import Calibration, Outcome, RunSpec
from kftune.training.loop.calibration import SpeedGauge, reference_seconds
from kftune.training.loop.trainer import train

CPU = torch.device("cpu")
SPEC = RunSpec(
    problem="digits_mlp",
    optimizer="sgd",
    params={"lr": 0.1, "batch_size": 64},
    seed=1,
    budget_seconds=1.0,
    n_evaluations=10,
    train_examples=100,
)


def calibrated(spec: RunSpec = SPEC) -> Calibration:
    result = train(spec)
    assert result.outcome is Outcome.COMPLETED, result.message
    assert result.calibration is not None
    return result.calibration


@pytest.fixture
def one_core() -> Iterator[int]:
    """This thread, which does all the work, stays on one core."""
    allowed, n_threads = os.sched_getaffinity(0), torch.get_num_threads()
    core = max(allowed)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {core})
    yield core
    os.sched_setaffinity(0, allowed)
    torch.set_num_threads(n_threads)


@contextmanager
def disturbance(core: int, n_processes: int = 3) -> Iterator[None]:
    """Processes that use the same core all the time."""
    script = f"import os; os.sched_setaffinity(0, {{{core}}}); print(flush=True)\nwhile True: pass"
    command = [sys.executable, "-c", script]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(n_processes)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_run_whose_reference_work_takes_longer_was_slowed_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gauge reads a clock that this test drives: everything takes three times as long in the slow run."""
    factor = 1.0
    monkeypatch.setattr(SpeedGauge, "_work", lambda gauge, repetitions: 0.002 * factor * repetitions)
    quick = replace(SPEC, budget_seconds=None, budget_updates=20)
    quiet = [calibrated(quick) for _ in range(2)]
    factor = 3.0
    slow = calibrated(quick)
    reference = reference_seconds([seconds for calibration in quiet for seconds in calibration.seconds])
    found = [replace(calibration, reference=reference).slowdown for calibration in (*quiet, slow)]
    assert found == pytest.approx([1.0, 1.0, 3.0])


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processes that can be pinned to a core")
def test_a_run_on_a_core_that_others_use_is_seen_to_be_slow(one_core: int) -> None:
    long = replace(SPEC, budget_seconds=2.0)
    quiet = [calibrated(long) for _ in range(2)]
    with disturbance(one_core):
        disturbed = calibrated(long)
    quiet += [calibrated(long) for _ in range(2)]
    reference = reference_seconds([seconds for calibration in quiet for seconds in calibration.seconds])
    *slowdowns, slowdown = [
        replace(calibration, reference=reference).slowdown or 0.0 for calibration in (*quiet, disturbed)
    ]
    # What else goes on on this machine may disturb some of the quiet runs.
    assert min(abs(slowdown - 1) for slowdown in slowdowns) < 0.2
    assert slowdown > 1.25 * max(1.0, statistics.median(slowdowns))


def test_it_is_measured_at_the_start_at_evaluations_and_at_the_end() -> None:
    result = train(SPEC)
    calibration = result.calibration
    assert calibration is not None
    assert calibration.train_seconds[0] == 0
    assert calibration.train_seconds[-1] == pytest.approx(result.train_seconds)
    assert list(calibration.train_seconds) == sorted(set(calibration.train_seconds))
    assert set(calibration.train_seconds[1:-1]) <= {point.train_seconds for point in result.curve}
    assert all(seconds > 0 for seconds in calibration.seconds)
    # It is no part of the clock, but of the seconds beside it.
    assert sum(calibration.seconds) < result.evaluation_seconds
    assert sum(result.phase_seconds.values()) == pytest.approx(result.train_seconds, rel=0.01)


def test_it_costs_little_of_the_train_seconds() -> None:
    gauge = SpeedGauge(CPU)
    gauge.measure(0.0)
    for train_seconds in range(1, 300):
        gauge.measure_if_cheap(train_seconds / 10)
    calibration = gauge.calibration()
    assert calibration is not None
    assert len(calibration.seconds) > 2
    # Each takes about twice what is stored, and a repetition.
    assert sum(calibration.seconds) < 0.02 * 30


def test_it_leaves_random_numbers_and_results_alone() -> None:
    torch.manual_seed(3)
    gauge = SpeedGauge(CPU)
    gauge.measure(0.0)
    gauge.measure(0.0)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    calibration = gauge.calibration()
    assert calibration is not None
    assert calibration.train_seconds == (0.0,)


def test_a_run_that_never_began_has_none() -> None:
    result = train(replace(SPEC, params={"lr": 0.1, "batch_size": 10**9}))
    assert result.outcome is Outcome.CRASHED
    assert result.calibration is None
    assert SpeedGauge(CPU).calibration() is None


@pytest.mark.parametrize(
    ("history", "expected"), [((), None), ((1.0, 2.0), None), ((3.0, 1.0, 2.0), 2.0), ((1.0, 1.0, 1.0, 1.1, 90.0), 1.0)]
)
def test_the_usual_speed_is_the_median_of_enough(history: tuple[float, ...], expected: float | None) -> None:
    assert reference_seconds(history) == expected


@pytest.mark.parametrize(
    ("train_seconds", "seconds", "slowdown"),
    [
        ((0.0, 10.0), (2.0, 2.0), 1.0),
        ((0.0, 5.0, 10.0), (2.0, 6.0, 2.0), 2.0),
        ((0.0, 9.0, 10.0), (2.0, 2.0, 4.0), 1.05),
        ((0.0,), (3.0,), 1.5),
    ],
)
def test_the_slowdown_is_an_average_over_the_run(
    train_seconds: tuple[float, ...], seconds: tuple[float, ...], slowdown: float
) -> None:
    calibration = Calibration(train_seconds=train_seconds, seconds=seconds)
    assert calibration.slowdown is None
    assert replace(calibration, reference=2.0).slowdown == pytest.approx(slowdown)
