"""Schedules of learning rate, damping and weight decay, against torch's own where it has the same one."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from kftune.optim import KFAC, OPTIMIZERS
from kftune.results import Outcome, RunSpec
from kftune.training.loop.schedules import Progress, Schedules
from kftune.training.loop.trainer import Training, train

N = 40


def sgd(lr: float = 0.3) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=lr, weight_decay=0.1)


def rates(params: dict[str, Any], n: int = N, key: str = "lr") -> list[float]:
    """The learning rate of each of ``n`` updates."""
    optimizer = sgd()
    schedules = Schedules(optimizer, params)
    found = []
    for k in range(n):
        schedules.set(Progress(share=k / n, updates=k, epochs=k / 4))
        found.append(optimizer.param_groups[0][key])
        optimizer.step()
    return found


def torchs(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], n: int = N) -> list[float]:
    optimizer = sgd()
    scheduler = make(optimizer)
    found = []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def in_sequence(optimizer: torch.optim.Optimizer, *parts: tuple[lr_scheduler.LRScheduler, int]) -> Any:
    ends = [end for _, end in parts[:-1]]
    return lr_scheduler.SequentialLR(optimizer, [part for part, _ in parts], milestones=ends)


TORCHS: list[tuple[dict[str, Any], Callable[[torch.optim.Optimizer], Any]]] = [
    ({"schedule": "constant"}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    ({"schedule": "linear"}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=N)),
    ({"schedule": "linear", "final_lr": 0.2}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=N)),
    ({"schedule": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=N)),
    ({"schedule": "cosine", "final_lr": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=N, eta_min=0.03)),
    ({"schedule": "step", "milestones": "0.5, 0.75"}, lambda o: lr_scheduler.MultiStepLR(o, [N // 2, 3 * N // 4])),
    (
        {"schedule": "step", "milestones": [10, 25], "schedule_by": "updates", "step_factor": 0.5},
        lambda o: lr_scheduler.MultiStepLR(o, [10, 25], gamma=0.5),
    ),
    (
        {"schedule": "step", "milestones": [2, 5], "schedule_by": "epochs"},
        lambda o: lr_scheduler.MultiStepLR(o, [8, 20]),
    ),
    (
        {"schedule": "wsd", "decay_share": 0.25},
        lambda o: in_sequence(
            o,
            (lr_scheduler.ConstantLR(o, factor=1.0), 3 * N // 4),
            (lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=N // 4), N),
        ),
    ),
    (
        {"schedule": "cosine", "warmup": 0.25},
        lambda o: in_sequence(
            o,
            (lr_scheduler.LinearLR(o, 1e-12, 1.0, total_iters=N // 4), N // 4),
            (lr_scheduler.CosineAnnealingLR(o, T_max=3 * N // 4), N),
        ),
    ),
]


@pytest.mark.parametrize(("params", "make"), TORCHS)
def test_a_schedule_is_torchs_where_torch_has_it(
    params: dict[str, Any], make: Callable[[torch.optim.Optimizer], Any]
) -> None:
    assert rates(params) == pytest.approx(torchs(make), rel=1e-9, abs=1e-11)


def test_a_warm_up_without_a_schedule_ends_at_the_learning_rate() -> None:
    assert rates({"warmup": 0.1}) == pytest.approx([0.3 * min(1.0, k / 4) for k in range(N)])
    assert rates({"warmup": 8.0, "schedule_by": "updates"}) == pytest.approx([0.3 * min(1.0, k / 8) for k in range(N)])


def test_a_scheduler_of_torch_goes_over_the_budget_in_a_thousand_steps() -> None:
    args = {"max_lr": 1.0, "total_steps": 1001, "cycle_momentum": False}
    text = json.dumps({"target": "torch.optim.lr_scheduler:OneCycleLR", "args": args})
    whole = torchs(lambda o: lr_scheduler.OneCycleLR(o, **args), n=1001)
    assert rates({"schedule": text}) == [whole[1000 * k // N] for k in range(N)]


@pytest.mark.parametrize("by", ["updates", "epochs"])
def test_a_scheduler_of_torch_makes_a_step_per_update_or_epoch(by: str) -> None:
    text = json.dumps({"target": "torch.optim.lr_scheduler:ExponentialLR", "args": {"gamma": 0.9}})
    per = {"updates": 1, "epochs": 4}[by]
    assert rates({"schedule": text, "schedule_by": by}) == pytest.approx([0.3 * 0.9 ** (k // per) for k in range(N)])


def test_weight_decay_has_its_own_schedule_or_the_learning_rates() -> None:
    cosine = [(1 + math.cos(math.pi * k / N)) / 2 for k in range(N)]
    own = rates({"weight_decay_schedule": "cosine", "final_weight_decay": 0.5}, key="weight_decay")
    assert own == pytest.approx([0.1 * (0.5 + 0.5 * factor) for factor in cosine])
    tied = {"schedule": "cosine", "warmup": 0.2, "weight_decay_schedule": "with_lr"}
    assert rates(tied, key="weight_decay") == pytest.approx([rate / 3 for rate in rates(tied)])


def spec(optimizer: str, budget: int = 12, **params: Any) -> RunSpec:
    example = dict(OPTIMIZERS.get(optimizer).example)
    return RunSpec(
        problem="digits_mlp",
        optimizer=optimizer,
        params={**example, "batch_size": 64, **params},
        seed=1,
        budget_updates=budget,
    )


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_every_optimizer_trains_under_a_schedule_and_another_budget_stretches_it(name: str) -> None:
    first = float(OPTIMIZERS.get(name).example["lr"])  # type: ignore[arg-type]  # every example has a number there
    for budget in (4, 8):
        training = Training(spec(name, budget, schedule="cosine", warmup=0.25), lambda point: None)
        training.set_up()
        seen = []
        for _ in range(budget):
            training._step()
            seen.append(training.optimizer.param_groups[0]["lr"] / first)
        shares = [k / budget for k in range(budget)]
        assert seen == pytest.approx(
            [s / 0.25 if s < 0.25 else (1 + math.cos(math.pi * (s - 0.25) / 0.75)) / 2 for s in shares], abs=1e-12
        )


def with_group_key(key: str) -> Iterable[str]:
    for entry in OPTIMIZERS:
        optimizer = entry.build(
            torch.nn.Sequential(torch.nn.Linear(2, 2)), likelihood="categorical", params=entry.example
        )
        if key in optimizer.param_groups[0] and key not in optimizer.adapts:
            yield entry.name


@pytest.mark.parametrize("name", list(with_group_key("damping")))
def test_damping_can_follow_the_learning_rate(name: str) -> None:
    run = spec(name, schedule="linear", final_lr=0.5, damping_schedule="with_lr", damping=0.01)
    result = train(run)
    assert result.outcome is Outcome.COMPLETED, result.message
    readings = result.curve[-1].readings
    assert readings is not None
    assert readings["damping"] / 0.01 == pytest.approx(readings["lr"] / float(run.params["lr"]))  # type: ignore[arg-type]
    assert readings["damping"] < 0.01


def test_a_share_of_seconds_is_read_from_the_training_clock() -> None:
    run = RunSpec(
        problem="digits_mlp",
        optimizer="sgd",
        params={"lr": 0.2, "batch_size": 64, "schedule": "linear"},
        seed=1,
        budget_seconds=8.0,
    )
    training = Training(run, lambda point: None)
    training.set_up()
    seen = []
    for seconds in (0.0, 2.0, 6.0):
        training._step(seconds)
        seen.append(training.optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.2, 0.15, 0.05])


TORCH_SCHEDULE = json.dumps({"target": "torch.optim.lr_scheduler:ExponentialLR", "args": {"gamma": 0.8}})


@pytest.mark.parametrize(
    "params",
    [
        {"schedule": "cosine", "warmup": 0.2, "damping_schedule": "with_lr", "momentum_growth": "linear"},
        {"schedule": "wsd", "damping_schedule": "linear", "final_damping": 0.1},
        {"schedule": TORCH_SCHEDULE, "schedule_by": "updates"},
    ],
)
def test_a_schedule_resumed_in_mid_budget_goes_on_bit_for_bit(params: dict[str, Any]) -> None:
    def setting() -> tuple[torch.nn.Module, KFAC]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
        return model, KFAC(model, lr=0.1, damping=0.1, momentum=0.9, likelihood="gaussian")

    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator)) for _ in range(10)]

    def go_on(model: torch.nn.Module, optimizer: KFAC, schedules: Schedules, updates: range) -> None:
        for k in updates:
            schedules.set(Progress(share=k / 10, updates=k))
            x, y = batches[k]

            def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> tuple[torch.Tensor, torch.Tensor]:
                output = model(x)
                return (output - y).square().mean(), output

            optimizer.step(closure)

    model, optimizer = setting()
    schedules = Schedules(optimizer, params)
    go_on(model, optimizer, schedules, range(4))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), schedules.state_dict()))
    go_on(model, optimizer, schedules, range(4, 10))
    again, other = setting()
    resumed = Schedules(other, params)
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    go_on(again, other, resumed, range(4, 10))
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"schedule": "cubic"}, "schedule must be one of constant, linear, cosine, wsd, step, got 'cubic'"),
        ({"schedul": "cosine"}, "schedul is not a schedule's; did you mean 'schedule'"),
        ({"schedule": "wsd", "decay_share": 0.0}, r"decay_share must be in \(0, 1\], got 0.0"),
        ({"schedule": "cosine", "schedule_by": "epochs"}, "schedule_by epochs is for"),
        ({"weight_decay_schedule": "with_lr"}, "weight_decay_schedule with_lr needs a schedule or warmup"),
        ({"damping_schedule": "linear"}, "damping_schedule is for optimizers with a damping, SGD has none"),
        ({"schedule": json.dumps({"target": "torch.optim.lr_scheduler:ReduceLROnPlateau"})}, "needs a loss"),
    ],
)
def test_what_says_nothing_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedules(sgd(), params)


def test_a_damping_that_the_method_adapts_is_left_to_it() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    entry = OPTIMIZERS.get("kfac_adaptive")
    optimizer = entry.build(model, likelihood="gaussian", params=entry.example)
    with pytest.raises(ValueError, match="damping_schedule is for a damping that the method leaves alone"):
        Schedules(optimizer, {"damping_schedule": "linear"})


def test_a_state_of_other_schedules_is_refused() -> None:
    state = Schedules(sgd(), {"schedule": "cosine"}).state_dict()
    with pytest.raises(ValueError, match="the state is of schedules of lr, these are of weight_decay"):
        Schedules(sgd(), {"weight_decay_schedule": "cosine"}).load_state_dict(state)


class OwnWarmup(torch.optim.SGD):
    """An optimizer with a ``warmup`` of its own."""

    def __init__(self, params: Any, lr: float = 0.1, warmup: int = 3) -> None:
        super().__init__(params, lr=lr)
        self.warmup = warmup


def test_a_name_that_the_constructor_takes_is_the_optimizers() -> None:
    run = RunSpec(
        problem="digits_mlp",
        optimizer=f"{__name__}:OwnWarmup",
        params={"lr": 0.1, "batch_size": 64, "warmup": 7},
        seed=1,
        budget_updates=2,
    )
    training = Training(run, lambda point: None)
    training.set_up()
    assert not training.schedules
    assert training.optimizer._wrapped.warmup == 7  # type: ignore[attr-defined]  # of the wrapper of torch's
