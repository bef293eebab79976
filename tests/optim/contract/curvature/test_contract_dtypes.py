"""What every registered optimizer does with a model whose layers have parameters of several types."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from tests.optim._contract import build, every, parameters
from tests.optim._dense import make_batch, make_closure

ORDERS = {
    "first in single": (torch.float32, torch.float64, torch.float64),
    "middle in single": (torch.float64, torch.float32, torch.float64),
    "last in single": (torch.float64, torch.float64, torch.float32),
}


class Mixed(nn.Module):
    """A chain of three linear layers, each with its own type, and the output in double precision."""

    def __init__(self, dtypes):
        super().__init__()
        torch.manual_seed(0)
        sizes = (6, 8, 8, 3)
        self.layers = nn.ModuleList(
            nn.Linear(a, b).to(dtype) for a, b, dtype in zip(sizes, sizes[1:], dtypes, strict=False)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x.to(layer.weight.dtype))
            x = x.double() if layer is self.layers[-1] else torch.tanh(x)
        return x


class Images(nn.Module):
    """Convolutions of unlike resolution, one in groups, normalised in yet another type than they have."""

    def __init__(self, dtypes):
        super().__init__()
        torch.manual_seed(0)
        first, norm, last = dtypes
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1).to(first), nn.GroupNorm(2, 4).to(norm)
        self.second, self.last = nn.Conv2d(4, 4, 2, stride=2, groups=2).to(norm), nn.Linear(4, 3).to(last)

    def forward(self, x):
        x = self.norm(self.first(x.view(-1, 2, 4, 4).to(self.first.weight.dtype)).to(self.norm.weight.dtype))
        x = torch.tanh(self.second(torch.tanh(x))).mean(dim=(2, 3))
        return self.last(x.to(self.last.weight.dtype)).double()


def batch(model, seed):
    return make_batch("categorical", 24, 32 if isinstance(model, Images) else 6, 3, seed=seed)


def step(optimizer, model, batch, parts):
    if parts is None:
        optimizer.step(make_closure(model, *batch, "categorical"))
        return
    for own in zip(*(t.split(parts) for t in batch), strict=True):
        optimizer.accumulate(make_closure(model, *own, "categorical"))
    optimizer.step()


def options_of(entry):
    """Everything that may bring layers together: momentum, a clip, weight decay."""
    known = inspect.signature(entry.cls).parameters
    wanted = {"weight_decay": 0.01, "warmup_updates": 0, "ridge": 1e-2, "damping": 0.05, "eps": 0.1}
    return entry.deterministic | {name: value for name, value in wanted.items() if name in known}


@every
@pytest.mark.parametrize("parts", [None, (3, 21)], ids=["one batch", "micro-batches"])
@pytest.mark.parametrize("dtypes", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("network", [Mixed, Images])
def test_it_is_the_model_in_double_precision_to_rounding(entry, network, dtypes, parts):
    if network is Images and entry.chains_only:
        pytest.skip("for chains of linear layers")
    found = []
    for own in (dtypes, 3 * (torch.float64,)):
        model = network(own)
        optimizer = build(entry, model, **options_of(entry))
        types = [p.dtype for p in model.parameters()]
        for seed in range(4):
            step(optimizer, model, batch(model, seed), parts)
        assert [p.dtype for p in model.parameters()] == types
        found.append(torch.cat([p.flatten().double() for p in parameters(model)]))
    start = torch.cat([p.flatten().double() for p in parameters(network(dtypes))])
    assert (found[0] - found[1]).norm() < 1e-3 * (found[1] - start).norm()


@every
def test_a_saved_state_goes_on_bit_for_bit(entry):
    model = Mixed(ORDERS["middle in single"])
    optimizer = build(entry, model)
    for seed in range(3):
        step(optimizer, model, batch(model, seed), None)
    other = copy.deepcopy(model)
    again = build(entry, other)
    again.load_state_dict(optimizer.state_dict())
    for seed in range(3, 6):
        for m, o in ((model, optimizer), (other, again)):
            step(o, m, batch(m, seed), None)
    assert all(torch.equal(a, b) for a, b in zip(parameters(model), parameters(other), strict=True))
