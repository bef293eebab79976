"""Growing momentum, and accumulation by a number of micro-batches."""

import copy
import inspect
import math

import pytest
import torch

from kftune.optim import OPTIMIZERS
from kftune.results import Outcome, RunSpec
from kftune.training.data.batches import BatchSizes
from kftune.training.loop.schedules import Progress, Schedules, momentum_after
from kftune.training.loop.trainer import Training, train
from tests.optim._dense import make_batch, make_closure, make_net
from tests.optim._dense_objective import flatten


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        ("constant", [0.9, 0.9, 0.9]),
        ("linear", [0.0, 0.1, 0.9]),
        ("exponential", [0.0, 1 - math.exp(-0.2), 0.9]),
        ("one_minus_inverse", [0.0, 0.5, 0.9]),
    ],
)
def test_momentum_grows_by_its_formula_up_to_its_value(growth: str, expected: list[float]) -> None:
    found = [momentum_after(k, growth=growth, rate=2.0, largest=0.9) for k in (0, 1, 1000)]
    assert found == pytest.approx(expected)


def spec(**params: object) -> RunSpec:
    return RunSpec(
        problem="digits_mlp",
        optimizer="sgd",
        params={"lr": 0.01, "momentum": 0.9, "batch_size": 32, **params},  # type: ignore[dict-item]  # any object
        seed=1,
        budget_updates=12,
    )


def test_the_optimizer_is_given_the_momentum_before_every_update() -> None:
    training = Training(spec(momentum_growth="linear", momentum_growth_rate=2.0), lambda point: None)
    training.set_up()
    seen = []
    for _ in range(12):
        training._step()
        seen.append(training.optimizer.param_groups[0]["momentum"])
    assert seen == pytest.approx([min(0.1 * k, 0.9) for k in range(12)])


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS.names() if "momentum" in OPTIMIZERS.get(n).space.dimensions])
def test_every_optimizer_with_a_momentum_can_have_a_growing_one(name: str) -> None:
    entry = OPTIMIZERS.get(name)
    params = {**entry.example, "momentum": 0.9, "batch_size": 64, "momentum_growth": "one_minus_inverse"}
    run = RunSpec(problem="digits_mlp", optimizer=name, params=params, seed=1, budget_updates=12)
    result = train(run)
    assert result.outcome is Outcome.COMPLETED, result.message
    assert result.curve[-1].readings is not None
    assert result.curve[-1].readings["momentum"] == pytest.approx(0.9)


# Two have velocities of their own.
WITH_VELOCITY = [
    entry.name
    for entry in OPTIMIZERS
    if "nesterov" in inspect.signature(entry.cls).parameters and entry.name not in ("muon", "kfac_adaptive")
]


@pytest.mark.parametrize("start", ["first_update", "second_update"])
@pytest.mark.parametrize("name", WITH_VELOCITY)
def test_growth_from_zero_begins_with_the_update_that_it_should(name: str, start: str) -> None:
    """θ_{k+1} = θ_k − η·v_k, v_k = μ_k·v_{k−1} + d_k; d_k is what the method does at θ_k without momentum."""
    entry, lr, velocity = OPTIMIZERS.get(name), 0.1, None
    model = make_net(6, 8, 3)
    options = {**entry.example, "lr": lr, "nesterov": False}
    optimizer = entry.build(model, likelihood="categorical", params={**options, "momentum": 0.9})
    growth = Schedules(optimizer, {"momentum_growth": "linear", "momentum_growth_start": start})
    assert growth
    for k in range(5):
        closures = []
        twin = copy.deepcopy(model)
        for network in (twin, model):
            closures.append(make_closure(network, *make_batch("categorical", 24, 6, 3, seed=k), "categorical"))
        plain = entry.build(twin, likelihood="categorical", params={**options, "momentum": 0.0})
        state = optimizer.state_dict()
        for group in state["param_groups"]:
            group["momentum"] = 0.0
        plain.load_state_dict(state)
        before = flatten(model.parameters())
        plain.step(closures[0])
        direction = (before - flatten(twin.parameters())) / lr
        growth.set(Progress(share=0.0, updates=k))
        optimizer.step(closures[1])
        kept = velocity is not None and (k > 1 or start == "first_update")
        velocity = 0.05 * k * velocity + direction if kept else direction
        torch.testing.assert_close(flatten(model.parameters()), before - lr * velocity, rtol=1e-9, atol=1e-12)


def test_torchs_own_optimizers_can_grow_from_the_first_update_too() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    sgd = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    growth = Schedules(sgd, {"momentum_growth": "one_minus_inverse", "momentum_growth_start": "first_update"})
    assert growth
    expected, velocity = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for k in range(6):
        parameter.grad = torch.randn(3, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        velocity = min(1 - 1 / (k + 1), 0.9) * velocity + parameter.grad
        expected = expected - 0.1 * velocity
        growth.set(Progress(share=0.0, updates=k))
        sgd.step()
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-14, atol=1e-14)


def test_a_momentum_of_zero_stays_zero() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    sgd = torch.optim.SGD([parameter], lr=0.1, momentum=0.0)
    growth = Schedules(sgd, {"momentum_growth": "linear", "momentum_growth_start": "first_update"})
    assert growth
    growth.set(Progress(share=0.0))
    assert sgd.param_groups[0]["momentum"] == 0.0


def test_what_makes_no_sense_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not Schedules(sgd, {})
    with pytest.raises(ValueError, match="momentum_growth must be one of constant, linear"):
        Schedules(sgd, {"momentum_growth": "cubic"})
    with pytest.raises(ValueError, match="momentum_growth_start must be one of second_update, first_update, got 'now'"):
        Schedules(sgd, {"momentum_growth": "linear", "momentum_growth_start": "now"})
    with pytest.raises(ValueError, match="momentum_growth_start needs momentum_growth"):
        Schedules(sgd, {"momentum_growth_start": "first_update"})
    with pytest.raises(ValueError, match="momentum_growth_rate must be in"):
        Schedules(sgd, {"momentum_growth": "linear", "momentum_growth_rate": -1.0})
    with pytest.raises(ValueError, match="momentum_growth_rate needs momentum_growth"):
        Schedules(sgd, {"momentum_growth_rate": 1.0})
    with pytest.raises(ValueError, match="AdamW has none"):
        Schedules(torch.optim.AdamW(model.parameters()), {"momentum_growth": "linear"})


def test_accumulation_is_a_multiple_of_the_batch_size() -> None:
    assert BatchSizes(batch_size=16, accumulation=3, n_train=100).of_update(0) == [16, 16, 16]
    assert BatchSizes(batch_size=16, accumulation=3, n_train=100).effective(0) == 48
    for sizes in (
        {"effective_batch_size": 16, "accumulation": 2},
        {"batch_size": 16, "effective_batch_size": 32, "accumulation": 2},
        {"batch_size": 16, "accumulation": 0},
        {"batch_size": 16, "accumulation": 7},
    ):
        with pytest.raises(ValueError, match=r"accumulation|effective_batch_size must be between 1 and the 100"):
            BatchSizes(**sizes, n_train=100)
    result = train(spec(accumulation=4))
    assert (result.outcome, result.examples) == (Outcome.COMPLETED, 12 * 128)
