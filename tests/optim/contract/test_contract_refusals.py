"""What every registered optimizer does after a batch that it refused: as if that had not been, bit for bit."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from torch import nn

from kftune.errors import CurvatureError, DivergenceError
from kftune.optim import OPTIMIZERS
from tests.optim._contract import build, every
from tests.optim._dense import make_batch, make_closure, make_net

REFUSALS = (DivergenceError, CurvatureError)
AFTERWARDS = range(60, 68)


def parameters_of(entry):
    return inspect.signature(entry.cls).parameters


def net():
    return make_net(6, 8, 8, 3).float()


def batch(seed):
    x, y = make_batch("categorical", 16, 6, 3, seed=seed)
    return x.float(), y


def first_row(x, value):
    return torch.cat([torch.full_like(x[:1], value), x[1:]])


def loss(scale):
    """Gradients ``scale`` times as large, with a loss that stays as it is."""

    def scaled(model, x, y):
        output = model(x)
        small = nn.functional.cross_entropy(output, y)
        return small + scale * (small - small.detach()), output

    return scaled


def ordinary(model, x, y):
    output = model(x)
    return nn.functional.cross_entropy(output, y), output


BAD = {
    "nan": (lambda x: x * float("nan"), ordinary),
    "an infinite entry": (lambda x: first_row(x, float("inf")), ordinary),
    "one row of 3e19": (lambda x: first_row(x, 3e19), ordinary),
    "inputs of 1e20": (lambda x: x * 1e20, ordinary),
    "gradients of 1e20": (lambda x: x, loss(1e22)),
    "gradients of 1e30": (lambda x: x, loss(1e30)),
    "infinite gradients": (lambda x: x, loss(float("inf"))),
}
bad_batches = pytest.mark.parametrize(("spoilt", "objective"), BAD.values(), ids=BAD)


def state_of(model):
    return [p.detach().clone() for p in model.parameters()]


def good(model, optimizer, seeds):
    return [optimizer.step(make_closure(model, *batch(seed), "categorical")).item() for seed in seeds]


def spoil(model, optimizer, spoilt, objective):
    """One bad batch; whether it was refused."""
    x, y = batch(50)
    before, refusal = state_of(model), ""
    try:
        optimizer.step(lambda: objective(model, spoilt(x), y))
    except REFUSALS as error:
        refusal = str(error)
    if refusal:
        assert "not finite" in refusal
        assert "this update's batch" in refusal or "products with the curvature" in refusal
        assert all(torch.equal(a, b) for a, b in zip(state_of(model), before, strict=True))
    return bool(refusal)


@functools.cache
def undisturbed(name, done):
    """(losses of the updates after the first ``done``, parameters, readings) without a bad batch."""
    model = net()
    optimizer = build(next(entry for entry in OPTIMIZERS if entry.name == name), model)
    good(model, optimizer, range(done))
    return good(model, optimizer, AFTERWARDS), state_of(model), optimizer.readings()


@pytest.mark.product
@every
@bad_batches
@pytest.mark.parametrize("done", [0, 3, 5], ids=lambda n: f"after-{n}")
def test_a_refused_batch_leaves_no_trace(entry, spoilt, objective, done):
    """Averages, inverses, counters, drawn labels, readings: what follows is the same, bit for bit; or it was taken.

    With inversions every 5 updates the bad batch meets one that inverts and one that does not, and good ones follow it
    that invert. Where it was only a large step, nothing that it left may stop what follows either.
    """
    model = net()
    optimizer = build(entry, model)
    good(model, optimizer, range(done))
    refused = spoil(model, optimizer, spoilt, objective)
    losses = good(model, optimizer, AFTERWARDS)
    state = optimizer.state_dict()
    tensors = [t for own in state["extra"].get("layers", {}).values() for t in own.values()]
    tensors += [t for own in state["state"].values() for t in own.values() if isinstance(t, torch.Tensor)]
    assert all(torch.isfinite(t).all() for t in tensors if t.is_floating_point())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    if refused:
        expected_losses, expected, readings = undisturbed(entry.name, done)
        assert losses == expected_losses
        assert all(torch.equal(a, b) for a, b in zip(state_of(model), expected, strict=True))
        assert optimizer.readings() == readings


@pytest.mark.parametrize("entry", [e for e in OPTIMIZERS if "factor_decay" in parameters_of(e)], ids=lambda e: e.name)
def test_what_overflows_in_an_average_is_refused_at_once(entry):
    """A row of 3e19 is finite in float32, and so is the gradient; what becomes of its square is not."""
    spoilt, objective = BAD["gradients of 1e30" if "eps" in parameters_of(entry) else "one row of 3e19"]
    model = net()
    optimizer = build(entry, model)
    good(model, optimizer, range(3))
    assert spoil(model, optimizer, spoilt, objective)


@every
def test_the_other_micro_batches_of_a_refused_update_are_dropped_with_it(entry):
    models = [net(), net()]
    disturbed, calm = (build(entry, model) for model in models)
    for model, optimizer in zip(models, (disturbed, calm), strict=True):
        good(model, optimizer, range(2))
    x, y = batch(50)
    disturbed.accumulate(make_closure(models[0], x, y, "categorical"))
    disturbed.accumulate(make_closure(models[0], x * float("nan"), y, "categorical"))
    with pytest.raises(DivergenceError, match="the loss is not finite"):
        disturbed.step()
    assert good(models[0], disturbed, range(60, 66)) == good(models[1], calm, range(60, 66))


@every
def test_a_closure_that_raises_is_forgotten_with_its_drawn_labels(entry):
    models = [net(), net()]
    disturbed, calm = (build(entry, model) for model in models)
    x, y = batch(50)

    def failing():
        models[0](x)
        raise MemoryError

    disturbed.accumulate(make_closure(models[0], x, y, "categorical"))
    with pytest.raises(MemoryError):
        disturbed.accumulate(failing)
    assert good(models[0], disturbed, range(6)) == good(models[1], calm, range(6))
