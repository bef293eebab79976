"""What every registered optimizer must do: hyperparameters, learning, accumulation, coverage, phases."""

from __future__ import annotations

import gc
import inspect
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests.optim._contract import LOOP_PARAMETERS, build, every, network, parameters, train
from tests.optim._dense import DTYPE, make_batch, make_closure


@every
def test_entry_is_complete(entry):
    arguments = inspect.signature(entry.cls).parameters
    assert {"model", "likelihood", "seed"} <= set(arguments)
    assert all(p.kind is p.KEYWORD_ONLY for name, p in arguments.items() if name != "model")
    searched = set(entry.space.names())
    assert searched - LOOP_PARAMETERS <= set(arguments)
    assert searched & LOOP_PARAMETERS
    assert (set(entry.example) | set(entry.deterministic)) <= set(arguments)
    assert entry.summary
    assert entry.paper
    assert "\n" not in entry.summary + entry.paper
    assert entry.invalid


class Edge:
    """A sampler that always answers with one end of a dimension."""

    def __init__(self, high):
        self._high = high

    def suggest_float(self, name, low, high, *, step=None, log=False):
        return high if self._high else low

    def suggest_int(self, name, low, high, *, step=1, log=False):
        return high if self._high else low

    def suggest_categorical(self, name, choices):
        return choices[-1 if self._high else 0]


@every
@pytest.mark.parametrize("high", [False, True])
def test_the_corners_of_the_space_are_valid(entry, high):
    params = {k: v for k, v in entry.space.suggest(Edge(high)).items() if k not in LOOP_PARAMETERS}
    entry.build(network(), likelihood="categorical", params=params)


@every
def test_invalid_arguments_are_refused(entry):
    for hyperparameters, message in entry.invalid:
        settings = {"likelihood": "categorical", "seed": 0, **hyperparameters}
        with pytest.raises(ValueError) as error:  # the message is checked below, without escaping
            entry.cls(network(), **settings)
        assert message in str(error.value)


@pytest.mark.product
@every
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_learns_a_small_problem(entry, likelihood, dtype):
    model = network().to(dtype)
    optimizer = build(entry, model, likelihood=likelihood)
    x, _ = make_batch(likelihood, 60, 6, 3)
    taught = x @ torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    y = {"categorical": taught.argmax(dim=1), "gaussian": taught.to(dtype), "bernoulli": (taught > 0).to(dtype)}
    closure = make_closure(model, x.to(dtype), y[likelihood], likelihood)
    losses = [optimizer.step(closure).item() for _ in range(100)]
    assert losses[-1] < 0.4 * losses[0]


@every
@pytest.mark.parametrize("split", [(12, 12), (5, 19), (8, 8, 8)])
def test_micro_batches_give_the_update_of_their_union(entry, split):
    models = [network(), network()]
    optimizers = [build(entry, model, **entry.deterministic) for model in models]
    for step in range(4):
        x, y = make_batch("categorical", 24, 6, 3, seed=step)
        whole = optimizers[0].step(make_closure(models[0], x, y, "categorical"))
        for part in zip(x.split(split), y.split(split), strict=True):
            optimizers[1].accumulate(make_closure(models[1], *part, "categorical"))
        torch.testing.assert_close(optimizers[1].step(), whole)
    for found, expected in zip(*map(parameters, models), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@every
def test_coverage_names_every_parameter_and_frozen_ones_stay(entry):
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    model[0].weight.requires_grad_(False)
    optimizer = build(entry, model)
    coverage = optimizer.coverage()
    assert list(coverage) == [name for name, _ in model.named_parameters()]
    assert {name for name, rule in coverage.items() if rule == "frozen"} == {"0.weight"}
    assert all(coverage.values())
    before = parameters(model)
    train(optimizer, model, 3)  # an odd number: equal steps up and down can cancel in two
    changed = [not torch.equal(a, b) for a, b in zip(parameters(model), before, strict=True)]
    assert changed == [False, True, True, True, True, True]


@every
def test_learning_rate_schedulers_work(entry):
    model = network()
    optimizer = build(entry, model)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.0)
    train(optimizer, model, 1)
    scheduler.step()
    before = parameters(model)
    train(optimizer, model, 1)
    for found, expected in zip(parameters(model), before, strict=True):
        assert torch.equal(found, expected)


@every
def test_evaluation_between_updates_changes_nothing(entry):
    models = [network(), network()]
    optimizers = [build(entry, model) for model in models]
    x, _ = make_batch("categorical", 24, 6, 3, seed=5)
    for step in range(4):
        models[0].eval()
        models[0](1e6 * x)
        models[0].train()
        with torch.no_grad():
            models[0](1e6 * x)
        models[0](1e6 * x)
        for model, optimizer in zip(models, optimizers, strict=True):
            train(optimizer, model, 1, first=step)
    for found, expected in zip(*map(parameters, models), strict=True):
        assert torch.equal(found, expected)


class Log:
    """Records phases, and that inner ones end before outer ones."""

    def __init__(self):
        self.seen, self._stack = set(), []

    @contextmanager
    def phase(self, name):
        self.seen.add(name)
        self._stack.append(name)
        yield
        assert self._stack.pop() == name


@every
def test_phases_are_reported(entry):
    model = network()
    optimizer = build(entry, model)
    optimizer.phases = log = Log()
    train(optimizer, model, 2)
    curvature = {"statistics", "inversion", "preconditioning"} if entry.second_order else set()
    assert log.seen == {"forward_backward", "update"} | curvature


@every
def test_the_loss_is_the_mean_over_all_examples(entry):
    model = network()
    optimizer = build(entry, model)
    x, y = make_batch("categorical", 24, 6, 3)
    expected = nn.functional.cross_entropy(model(x), y).detach()
    for part in zip(x.split((4, 20)), y.split((4, 20)), strict=True):
        optimizer.accumulate(make_closure(model, *part, "categorical"))
    loss = optimizer.step()
    torch.testing.assert_close(loss, expected)
    assert loss.dtype == DTYPE
    assert not loss.requires_grad


@every
def test_stepping_from_nothing_is_an_error(entry):
    with pytest.raises(RuntimeError, match=r"step\(closure\), or accumulate\(closure\)"):
        build(entry, network()).step()


@every
@pytest.mark.parametrize("fisher", ["mc", "exact", "empirical"])
def test_an_update_leaves_nothing_to_the_garbage_collector(entry, fisher):
    """Activations that only the collector frees stay for many updates: on a GPU, until memory runs out."""
    arguments = inspect.signature(entry.cls).parameters
    name = next((name for name in ("fisher", "labels") if name in arguments), None)
    if name is None and fisher != "mc":
        pytest.skip(f"{entry.name} has no choice of labels")
    model = network()
    optimizer = build(entry, model, **({} if name is None else {name: fisher}))
    x, y = make_batch("categorical", 23, 6, 3)  # as many as nothing else has here
    train(optimizer, model, 2)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            optimizer.step(make_closure(model, x, y, "categorical"))
        train(optimizer, model, 2)
        kept = [
            tuple(t.shape)
            for t in gc.get_objects()
            if issubclass(type(t), torch.Tensor) and 23 in t.shape and t is not x and t is not y
        ]
    finally:
        gc.enable()
    assert kept == []
