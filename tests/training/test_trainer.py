"""One run under the clock, with real optimizers on real data."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from kftune.optim import OPTIMIZERS
from kftune.results import PHASES, CurvePoint, Outcome, RunResult, RunSpec
from kftune.training.loop.trainer import Training, train

EXAMPLES = [(entry.name, {"batch_size": 64} | dict(entry.example)) for entry in OPTIMIZERS]


def spec(**changes: object) -> RunSpec:
    settings: dict[str, object] = {
        "problem": "digits_mlp",
        "optimizer": "sgd",
        "params": {"lr": 0.1, "momentum": 0.9, "batch_size": 64},
        "seed": 11,
        "budget_updates": 40,
        "n_evaluations": 4,
    }
    return RunSpec(**(settings | changes))  # type: ignore[arg-type]  # a test's shorthand


def slow_down(monkeypatch: pytest.MonkeyPatch, method: str, seconds: float) -> None:
    """Make a step of the run sleep."""
    original = getattr(Training, method)

    def slowed(self: Training, *args: object) -> object:
        time.sleep(seconds)
        return original(self, *args)

    monkeypatch.setattr(Training, method, slowed)


@pytest.mark.parametrize(("optimizer", "params"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_every_optimizer_completes_its_updates(optimizer: str, params: dict[str, object]) -> None:
    points: list[CurvePoint] = []
    result = train(spec(optimizer=optimizer, params=params), points.append)
    assert result.outcome is Outcome.COMPLETED, result.message
    assert [point.update for point in result.curve] == [0, 10, 20, 30, 40]
    assert points == list(result.curve)
    assert result.updates == 40
    assert result.curve[-1].test_loss < result.curve[0].test_loss
    assert 0 <= (result.curve[-1].accuracy or -1) <= 1
    assert set(result.phase_seconds) == set(PHASES)
    assert sum(result.phase_seconds.values()) == pytest.approx(result.train_seconds, rel=0.01)
    assert result.overshoot_seconds == 0
    assert result.peak_memory_bytes is None or result.peak_memory_bytes > 0


def test_a_run_tells_what_was_done_to_how_many_parameters() -> None:
    def treatments(optimizer: str, problem: str) -> object:
        params = {"batch_size": 64} | dict(OPTIMIZERS.get(optimizer).example)
        return train(spec(optimizer=optimizer, problem=problem, params=params, budget_updates=1)).treatments

    n_mlp = 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
    assert treatments("sgd", "digits_mlp") == {"SGD": n_mlp}
    assert treatments("kfac", "digits_mlp") == {"Kronecker-factored": n_mlp}
    mixed = treatments("kfac", "digits_resnet")
    assert isinstance(mixed, dict)
    assert mixed["SGD, outside the KL clip"] == 2 * (3 * 16 + 2 * 32)  # the scales and shifts of BatchNorm


def test_a_run_that_ends_before_it_has_an_optimizer_tells_nothing_of_it() -> None:
    assert train(spec(params={"lr": -1.0})).treatments is None


def losses(result: RunResult) -> list[float]:
    return [point.test_loss for point in result.curve]


def test_same_seed_same_curve_other_seed_another() -> None:
    assert losses(train(spec())) == losses(train(spec()))
    assert losses(train(spec())) != losses(train(spec(seed=12)))


def test_repeats_share_initial_weights_and_data_order_across_optimizers() -> None:
    trainings = []
    for optimizer in ("sgd", "kfac", "foof"):
        training = Training(spec(optimizer=optimizer, params={"batch_size": 64}), lambda point: None)
        training.set_up()
        training.warm_up()
        trainings.append(training)
    first, *others = [
        (torch.nn.utils.parameters_to_vector(t.model.parameters()), t.indices.take(500), torch.rand(3))
        for t in trainings
    ]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first[:2], other[:2], strict=True))


def test_warm_up_leaves_no_trace() -> None:
    def prepared(*, warm: bool) -> Training:
        training = Training(spec(optimizer="kfac", params={"batch_size": 64}), lambda point: None)
        training.set_up()
        if warm:
            training.warm_up()
        training.run()
        return training

    cold, warm = prepared(warm=False), prepared(warm=True)
    assert [p.test_loss for p in cold.curve] == [p.test_loss for p in warm.curve]


def test_seconds_budget_ends_in_time() -> None:
    result = train(spec(budget_updates=None, budget_seconds=0.5))
    assert result.outcome is Outcome.COMPLETED, result.message
    assert result.train_seconds > 0.3
    assert result.train_seconds == pytest.approx(0.5 + result.overshoot_seconds, abs=0.2)
    assert len(result.curve) >= 4
    assert result.examples == 64 * result.updates


def test_a_step_predicted_to_end_past_the_budget_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch, "_step", 0.2)
    result = train(spec(budget_updates=None, budget_seconds=0.7))
    assert result.updates == 3
    assert result.overshoot_seconds == 0


def test_overshoot_is_at_most_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch, "_step", 0.3)
    result = train(spec(budget_updates=None, budget_seconds=0.1))
    assert result.updates == 1
    assert 0.2 <= result.overshoot_seconds < 0.3


def test_evaluation_does_not_count_and_a_slow_step_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        slow_down(patch, "_measure", 0.25)
        result = train(spec(budget_updates=4, n_evaluations=2))
    assert result.evaluation_seconds > 1.4
    assert result.train_seconds < 0.25
    slow_down(monkeypatch, "_step", 0.05)
    assert train(spec(budget_updates=4)).train_seconds > 0.2


def test_divergence_is_an_outcome_with_its_curve() -> None:
    result = train(spec(params={"lr": 1e20, "momentum": 0.9, "batch_size": 64}))
    assert result.outcome is Outcome.DIVERGED
    assert "not finite" in result.message or "the test loss is" in result.message
    assert result.curve[0].update == 0


def test_a_users_error_is_a_crash_with_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: torch.nn.Linear, inputs: Tensor) -> Tensor:
        raise ValueError("my own mistake")

    monkeypatch.setattr(torch.nn.Linear, "forward", broken)
    result = train(spec())
    assert result.outcome is Outcome.CRASHED
    assert "ValueError: my own mistake" in result.message


def test_micro_batches_give_the_update_of_their_union() -> None:
    together = train(spec(params={"lr": 0.1, "batch_size": 64}, dtype="float64", budget_updates=5))
    apart = train(
        spec(params={"lr": 0.1, "batch_size": 20, "effective_batch_size": 64}, dtype="float64", budget_updates=5)
    )
    assert apart.examples == together.examples
    assert losses(apart) == pytest.approx(losses(together), rel=1e-10)


def test_exactly_one_budget() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Training(spec(budget_seconds=1.0), lambda point: None)
