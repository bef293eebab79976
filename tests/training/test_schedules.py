"""Growing momentum, and accumulation by a number of micro-batches."""

import math

import pytest
import torch

from kftune.optim import OPTIMIZERS
from kftune.results import Outcome, RunSpec
from kftune.training.data.batches import BatchSizes
from kftune.training.loop.schedules import Schedules, momentum_after
from kftune.training.loop.trainer import Training, train


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


def test_what_makes_no_sense_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not Schedules(sgd, {})
    with pytest.raises(ValueError, match="momentum_growth must be one of constant, linear"):
        Schedules(sgd, {"momentum_growth": "cubic"})
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
