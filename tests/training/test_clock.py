import time

import pytest
import torch

from kftune.results import PHASES
from kftune.training.loop.clock import Clock


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def clock(fake_time: FakeTime) -> Clock:
    return Clock(torch.device("cpu"), now=fake_time)


def test_counts_only_between_resume_and_pause(clock: Clock, fake_time: FakeTime) -> None:
    fake_time.now += 7
    clock.resume()
    fake_time.now += 2
    assert clock.seconds() == 2
    assert clock.pause() == 2
    fake_time.now += 5
    assert clock.seconds() == 2
    clock.resume()
    fake_time.now += 1
    assert clock.pause() == 3


def test_phases_are_exclusive_and_add_up(clock: Clock, fake_time: FakeTime) -> None:
    clock.resume()
    fake_time.now += 1  # other
    with clock.phase("forward_backward"):
        fake_time.now += 2
        with clock.phase("statistics"):
            fake_time.now += 4
            with clock.phase("inversion"):
                fake_time.now += 8
        fake_time.now += 16
    total = clock.pause()
    phases = clock.phase_seconds()
    assert phases == dict.fromkeys(PHASES, 0.0) | {
        "other": 1, "forward_backward": 18, "statistics": 4, "inversion": 8
    }  # fmt: skip
    assert sum(phases.values()) == total == 31


def test_a_phase_left_by_an_exception_is_closed(clock: Clock, fake_time: FakeTime) -> None:
    def fail_in_a_phase() -> None:
        with clock.phase("update"):
            fake_time.now += 1
            raise KeyError

    clock.resume()
    with pytest.raises(KeyError):
        fail_in_a_phase()
    fake_time.now += 2
    clock.pause()
    assert clock.phase_seconds()["update"] == 1
    assert clock.phase_seconds()["other"] == 2


def test_phases_outside_the_clock_count_nothing(clock: Clock, fake_time: FakeTime) -> None:
    with clock.phase("update"):
        fake_time.now += 1
    assert sum(clock.phase_seconds().values()) == 0


def test_resuming_twice_is_refused(clock: Clock) -> None:
    clock.resume()
    with pytest.raises(RuntimeError, match="running already"):
        clock.resume()


def test_unknown_phase_is_refused(clock: Clock) -> None:
    with pytest.raises(KeyError):
        clock.phase("coffee")


def test_real_time() -> None:
    clock = Clock(torch.device("cpu"))
    clock.resume()
    with clock.phase("update"):
        time.sleep(0.05)
    seconds = clock.pause()
    time.sleep(0.05)
    assert 0.05 <= clock.seconds() == seconds
    assert sum(clock.phase_seconds().values()) == pytest.approx(seconds, rel=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_phases_add_up_and_wait_for_the_device() -> None:
    device = torch.device("cuda")
    clock = Clock(device)
    a = torch.randn(4096, 4096, device=device)
    a @ a
    clock.resume()
    with clock.phase("forward_backward"):
        for _ in range(20):
            a = (a @ a).tanh()
    seconds = clock.pause()
    phases = clock.phase_seconds()
    assert sum(phases.values()) == pytest.approx(seconds, rel=1e-6)
    assert phases["forward_backward"] > 0.8 * seconds
