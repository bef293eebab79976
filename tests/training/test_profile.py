"""The profile's arithmetic on a clock of its own, and whole profiles; no assertion on real seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kftune.errors import DivergenceError, UnknownNameError, UsageError
from kftune.optim import OPTIMIZERS, SGD, OptimizerEntry
from kftune.space import Space
from kftune.training.profile import Contestant, Profile, ProfileSpec, Progress, Quartiles, Round, profile
from kftune.training.profile._memory import peak_allocated_bytes
from kftune.training.profile._run import _threads, complete_params
from kftune.training.profile._timing import Block, Stopwatch, period_of, plan_block, plan_sgd_block
from kftune.training.profile._workload import machine

CPU = torch.device("cpu")


class Time:
    """A clock that steps move on by as many seconds as they say."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def step(self, *seconds: float) -> Callable[[], None]:
        """A step that takes these seconds in turn, over and over."""
        turn = 0

        def run() -> None:
            nonlocal turn
            self.now += seconds[turn % len(seconds)]
            turn += 1

        return run


# --- timing


def test_a_ratio_is_the_block_over_the_mean_of_both_neighbours() -> None:
    assert Round(sgd_before=1.0, optimizer=6.0, sgd_after=3.0).ratio == 3.0


def test_drift_that_hits_both_alike_cancels() -> None:
    time = Time()
    slowness = 1.0

    def drifting(seconds: float) -> Callable[[], None]:
        def step() -> None:
            nonlocal slowness
            time.now += seconds * slowness
            slowness *= 1.001

        return step

    rounds = Stopwatch(now=time).rounds(drifting(1.0), drifting(2.0), n=5, block=Block(steps=10, group=10))
    # Slower by a third from first to last; seconds alone would say so.
    assert rounds[-1].sgd_after > 1.08 * rounds[0].sgd_before
    assert [r.ratio for r in rounds] == pytest.approx([2.0] * 5, rel=0.01)


def test_neighbouring_rounds_share_a_block() -> None:
    time = Time()
    seen: list[float] = []
    rounds = Stopwatch(now=time).rounds(
        time.step(1.0), time.step(2.0), n=3, block=Block(steps=6, group=1), on_round=lambda: seen.append(time.now)
    )
    assert [r.ratio for r in rounds] == [2.0] * 3
    assert [a.sgd_after for a in rounds[:-1]] == [b.sgd_before for b in rounds[1:]]
    # One step that is not timed before each block; 5 SGD steps beside 6 of the optimizer.
    assert time.now == 4 * (1 + 5) * 1.0 + 3 * (1 + 6) * 2.0
    assert len(seen) == 3
    assert seen[-1] == time.now


def test_a_block_has_its_share_of_what_is_done_now_and_then() -> None:
    # An inversion of 91 seconds every 10 steps of 1 second: 10 seconds a step, though most take 1.
    time = Time()
    step = time.step(*[1.0] * 9, 91.0)
    assert Stopwatch(now=time).seconds_per_step(step, Block(steps=30, group=10)) == pytest.approx(10.0)
    assert Stopwatch(now=time).seconds_per_step(step, Block(steps=30, group=1)) == 1.0


def test_one_disturbance_does_not_move_a_block() -> None:
    time = Time()
    step = time.step(1.0, 1.0, 1.0, 500.0, 1.0, 1.0)
    assert Stopwatch(now=time).seconds_per_step(step, Block(steps=5, group=1)) == 1.0


def test_the_device_is_waited_for_at_every_reading() -> None:
    time = Time()
    queued = 0.0

    def launch() -> None:
        nonlocal queued
        queued += 2.0
        time.now += 0.1

    def wait() -> None:
        nonlocal queued
        time.now, queued = time.now + queued, 0.0

    assert Stopwatch(now=time, wait=wait).seconds_per_step(launch, Block(steps=4, group=4)) == pytest.approx(2.1)


def test_quartiles() -> None:
    assert Quartiles.of([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)
    assert Quartiles.of([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert Quartiles.of([7.0]) == (7.0, 7.0, 7.0)
    assert all(math.isnan(value) for value in Quartiles.of([]))


@pytest.mark.parametrize(
    ("params", "period"),
    [
        ({}, 1),
        ({"statistics_every": 10, "inverses_every": 100, "lr": 0.5, "every": 7}, 100),
        ({"statistics_every": 4, "basis_every": 6}, 12),
        ({"basis_every": None, "damping_every": 5, "x_every": True, "y_every": 0}, 5),
    ],
)
def test_the_period_is_the_least_common_multiple(params: Mapping[str, Any], period: int) -> None:
    assert period_of(params) == period


@pytest.mark.parametrize(
    ("steps", "group", "seconds", "expected"),
    [
        (None, 1, 0.01, 30),
        (None, 1, 10.0, 1),
        (None, 100, 0.01, 100),
        (None, 100, 0.002, 200),
        (None, 10, 1e-3, 300),
        (1, 100, 1e-6, 100),
        (150, 100, 1.0, 200),
        (7, 1, 1.0, 7),
    ],
)
def test_blocks_are_whole_periods(steps: int | None, group: int, seconds: float, expected: int) -> None:
    assert plan_block(steps=steps, group=group, step_seconds=seconds) == Block(steps=expected, group=group)


@pytest.mark.parametrize(
    ("steps", "group", "sgd_steps", "sgd_group"),
    [(1, 1, 5, 1), (300, 1, 100, 1), (100, 100, 34, 34), (300, 10, 100, 10)],
)
def test_sgd_blocks_are_shorter(steps: int, group: int, sgd_steps: int, sgd_group: int) -> None:
    assert plan_sgd_block(Block(steps=steps, group=group)) == Block(steps=sgd_steps, group=sgd_group)


# --- memory


def test_peak_memory_is_of_one_time_and_of_the_run_alone() -> None:
    there_before = torch.zeros(1_000_000)

    def run() -> None:
        kept = torch.zeros(250_000)  # 1 MB
        for _ in range(3):
            released = kept + 1
            del released
        assert there_before.numel() > kept.numel()

    assert peak_allocated_bytes(run, CPU) == pytest.approx(2_000_000, abs=100)  # a scalar or two
    assert peak_allocated_bytes(lambda: None, CPU) == 0


# --- all of it


def spec(*contestants: Contestant, **changed: Any) -> ProfileSpec:
    settings: dict[str, Any] = {"problem": "digits_mlp", "batch_size": 16, "rounds": 2, "steps": 1} | changed
    return ProfileSpec(contestants=contestants, **settings)


def test_every_optimizer_can_be_profiled() -> None:
    said: list[Progress] = []
    contestants = [Contestant(label=name, optimizer=name, params=_short(name)) for name in OPTIMIZERS.names()]
    measured = profile(spec(*contestants), said.append)
    assert isinstance(measured, Profile)
    assert [each.label for each in measured.optimizers] == list(OPTIMIZERS.names())
    for each in measured.optimizers:
        assert each.failure == ""
        assert len(each.rounds) == 2
        assert each.steps % each.period == 0
        assert sum(each.phase_ratios.values()) == pytest.approx(each.ratio.median)
        assert each.phases["forward_backward"] > 0
        # Parameters, gradients and the momentum or more.
        assert each.peak_memory_bytes is not None
        assert each.peak_memory_bytes > 2 * 4 * measured.n_parameters
        assert (each.floor is None) == (OPTIMIZERS.get(each.optimizer).floor is None)
    assert [(s.d_A, s.d_G, s.n_rows) for s in measured.layers] == [(65, 64, 16), (65, 64, 16), (65, 10, 16)]
    assert measured.sgd_flops == 6 * 16 * (2 * 65 * 64 + 65 * 10)
    json.dumps(measured.to_dict(), allow_nan=False)
    labels = [progress.label for progress in said]
    assert list(dict.fromkeys(labels)) == list(OPTIMIZERS.names())
    assert labels.count("sgd") == 3  # at its start and after each round


def _short(name: str) -> dict[str, int]:
    params = complete_params(OPTIMIZERS.get(name), {})
    return {key: min(2, value) for key, value in params.items() if key.endswith("_every") and type(value) is int}


def test_a_convolutional_net_and_a_transformer_have_sizes_too() -> None:
    kfac = Contestant(label="k", optimizer="kfac", params={"statistics_every": 1, "inverses_every": 2})
    measured = profile(spec(kfac, problem="digits_resnet", problem_args={"width": 4}, rounds=1))
    assert [(s.d_A, s.d_G, s.n_rows) for s in measured.layers] == [
        (9, 4, 16 * 64),
        (36, 4, 16 * 64),
        (36, 4, 16 * 64),
        (36, 8, 16 * 16),
        (72, 8, 16 * 16),
        (9, 10, 16),
    ]
    measured = profile(spec(kfac, problem="digits_transformer", problem_args={"width": 8}, rounds=1))
    block = [(9, 8, 128), (8, 8, 128), (9, 8, 128), (9, 8, 128), (9, 16, 128), (17, 8, 128)]
    assert [(s.d_A, s.d_G, s.n_rows) for s in measured.layers] == [(9, 8, 128), *block, *block, (9, 10, 16)]


def test_threads_are_set_and_put_back() -> None:
    # Not by a whole profile: more threads than free cores wait for each other.
    before = torch.get_num_threads()
    with _threads(before + 1):
        assert machine(CPU).threads == before + 1
    assert torch.get_num_threads() == before
    assert profile(spec(Contestant(label="s", optimizer="sgd"), rounds=1)).machine.threads == 1


def test_hyperparameters_are_complete_and_a_warm_up_of_the_periods_is_off_unless_asked_for() -> None:
    entry = OPTIMIZERS.get("kfac")
    params = complete_params(entry, {"lr": 0.5})
    assert (params["lr"], params["inverses_every"], params["warmup_updates"]) == (0.5, 100, 0)
    assert not {"model", "likelihood", "seed"} & set(params)
    assert complete_params(entry, {"warmup_updates": 7})["warmup_updates"] == 7


class Diverging(SGD):
    """Fails at its tenth update."""

    def _update(self) -> None:
        self.n = getattr(self, "n", 0) + 1
        if self.n == 10:
            raise DivergenceError("a gradient is not finite")
        super()._update()


class Picky(SGD):
    """Takes no model."""

    def __init__(self, model: nn.Module, **params: Any) -> None:
        raise ValueError("only chains of layers can be\ntreated")


@pytest.fixture
def odd_optimizers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        cls.__name__.lower(): OptimizerEntry(
            name=cls.__name__.lower(), cls=cls, summary="", paper="", space=Space(), second_order=False
        )
        for cls in (Diverging, Picky)
    }
    ordinary = OPTIMIZERS.get
    monkeypatch.setattr(OPTIMIZERS, "get", lambda name: found.get(name) or ordinary(name))


@pytest.mark.usefixtures("odd_optimizers")
def test_what_cannot_be_measured_says_why_and_the_others_go_on() -> None:
    contestants = [Contestant(label=name, optimizer=name, required=False) for name in ("diverging", "picky", "sgd")]
    measured = profile(spec(*contestants))
    assert [each.failure for each in measured.optimizers] == [
        "a gradient is not finite",
        "only chains of layers can be treated",
        "",
    ]
    assert [len(each.rounds) for each in measured.optimizers] == [0, 0, 2]
    assert measured.optimizers[0].phase_ratios == {}


@pytest.mark.usefixtures("odd_optimizers")
def test_what_was_asked_for_by_name_must_be_possible() -> None:
    with pytest.raises(UsageError, match=r"^mine: only chains of layers"):
        profile(spec(Contestant(label="mine", optimizer="picky")))


@pytest.mark.parametrize("batch_size", [0, 1438])
def test_batch_sizes_beyond_the_training_set(batch_size: int) -> None:
    with pytest.raises(UsageError, match=f"between 1 and the 1437 training examples of digits_mlp, got {batch_size}"):
        profile(spec(Contestant(label="sgd", optimizer="sgd"), batch_size=batch_size))


def test_unknown_names_and_bad_values(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'digits_mlp'"):
        profile(spec(problem="digit_mlp"))
    with pytest.raises(UnknownNameError, match="did you mean 'kfac'"):
        profile(spec(Contestant(label="x", optimizer="kfak")))
    with pytest.raises(UsageError, match=r"x: lr must be in \[0, inf\), got -1"):
        profile(spec(Contestant(label="x", optimizer="sgd", params={"lr": -1.0})))
