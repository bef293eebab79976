"""What every registered optimizer leaves of an update that is refused in its state and in the model: nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kftune.errors import CurvatureError, DivergenceError
from kftune.optim import SOAP, Shampoo
from tests.optim._contract import build, every
from tests.optim._dense import make_batch, make_closure, make_net

REFUSALS = (DivergenceError, CurvatureError)


def bits(tree):
    """Every leaf of nested data, tensors as copies."""
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [bits(value) for value in tree]
    return tree.detach().clone() if isinstance(tree, torch.Tensor) else copy.deepcopy(tree)


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def batch(seed):
    x, y = make_batch("categorical", 16, 6, 3, seed=seed)
    return x.float(), y


# What is refused at the very end.

LAST = {
    "soap": (SOAP, {"inverses_every": 2}, 5, "left_basis"),
    "soap at a new basis": (SOAP, {"inverses_every": 2}, 4, "left_basis"),
    "soap with a null space": (SOAP, {"inverses_every": 100}, 4, "left_basis"),
    "shampoo": (Shampoo, {"inverses_every": 2}, 4, "left_root"),
    "shampoo, grafted from sgd": (Shampoo, {"inverses_every": 2, "grafting": "sgd"}, 4, "right_root"),
    "shampoo, not grafted": (Shampoo, {"inverses_every": 2, "grafting": "none"}, 4, "right_root"),
}


@pytest.mark.parametrize(("cls", "options", "done", "key"), LAST.values(), ids=LAST)
def test_a_direction_that_is_not_finite_leaves_the_state_bit_for_bit(cls, options, done, key):
    """Of a state whose basis or root is not finite: batch and averages are, the direction is not."""
    model = make_net(6, 4, 3).float()
    optimizer = cls(model, lr=0.01, **options)
    for seed in range(done):
        optimizer.step(make_closure(model, *batch(seed), "categorical"))
    weight = model[0].weight
    good = optimizer.state[weight][key]
    optimizer.state[weight][key] = torch.full_like(good, float("inf"))
    before, parameters = bits(optimizer.state_dict()), bits(list(model.parameters()))
    for _ in range(2):
        with pytest.raises(REFUSALS, match="not finite"):
            optimizer.step(make_closure(model, *batch(50), "categorical"))
        assert equal(bits(optimizer.state_dict()), before)
        assert equal(bits(list(model.parameters())), parameters)
    optimizer.state[weight][key] = good
    optimizer.step(make_closure(model, *batch(51), "categorical"))
    assert not equal(bits(list(model.parameters())), parameters)


@every
@pytest.mark.parametrize("done", [0, 1, 4])
@pytest.mark.parametrize("value", [float("nan"), 3e19, 1e30], ids=str)
def test_a_refused_batch_leaves_the_state_bit_for_bit(entry, done, value):
    """Also the first one, before which there is none."""
    model = make_net(6, 8, 3).float()
    optimizer = build(entry, model)
    for seed in range(done):
        optimizer.step(make_closure(model, *batch(seed), "categorical"))
    before = bits(optimizer.state_dict())
    x, y = batch(50)
    x[0] = value
    try:
        optimizer.step(make_closure(model, x, y, "categorical"))
    except REFUSALS:
        assert equal(bits(optimizer.state_dict()), before)


# What the forward pass has changed.


class Normalised(nn.Module):
    """A chain of linear layers with running statistics in between, some of them not in training."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.norm, self.frozen = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.stateless = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x):
        self.frozen.eval()
        return self.last(torch.tanh(self.stateless(self.frozen(self.norm(self.first(x))))))


@every
def test_running_statistics_are_as_before_a_refused_update(entry):
    """In every micro-batch, whether it was refused or its closure failed; and good batches go on as without it."""
    models = [Normalised(), Normalised()]
    disturbed, calm = (build(entry, model) for model in models)
    for seed in range(2):
        for model, optimizer in zip(models, (disturbed, calm), strict=True):
            optimizer.step(make_closure(model, *batch(seed), "categorical"))
    before = bits(dict(models[0].named_buffers()))
    x, y = batch(50)

    def failing():
        models[0](x)
        raise MemoryError

    for spoilt in (make_closure(models[0], x * float("nan"), y, "categorical"), failing):
        disturbed.accumulate(make_closure(models[0], x, y, "categorical"))
        assert not equal(bits(dict(models[0].named_buffers())), before)
        with pytest.raises((*REFUSALS, MemoryError)):
            disturbed.step(spoilt)
        assert equal(bits(dict(models[0].named_buffers())), before)
    for seed in range(2, 5):
        for model, optimizer in zip(models, (disturbed, calm), strict=True):
            optimizer.step(make_closure(model, *batch(seed), "categorical"))
    assert equal(bits(models[0].state_dict()), bits(models[1].state_dict()))
