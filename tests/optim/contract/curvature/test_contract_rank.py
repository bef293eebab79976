"""What every method with curvature does where that has a null space: the data decide, not rounding."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from tests.optim._contract import ENTRIES, build, parameters
from tests.optim._dense import make_batch, make_closure, make_net

ORDER = {6: [5, 3, 1, 0, 2, 4], 24: [*range(23, -1, -2), *range(0, 24, 2)]}
SPLITS = {"parts": 2, "singly": 1, "permuted": 24}


def wide():
    """Six examples for 12 inputs: neither A nor G nor a gradient has full rank."""
    return make_net(12, 9, 3), 6


def with_idle_inputs():
    """Inputs that are always 0, as constant pixels are."""
    model = make_net(12, 8, 3)
    model.register_forward_pre_hook(lambda module, args: (args[0] * (torch.arange(12) % 3 > 0),))
    return model, 24


def with_equal_outputs():
    """All classes are equally likely at first: G of the last layer has equal eigenvalues, all others are 0."""
    model = make_net(12, 8, 3)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    return model, 24


def moves(entry, make, *, part=24, permuted=False):
    """Parameters after 7 updates, of bases at unlike ages, less what they were."""
    model, n = make()
    order = ORDER[n] if permuted else list(range(n))
    before = parameters(model)
    # Rounding is amplified by singular factors that nothing damps, and divided by Adam's eps.
    wanted = {"inverses_every": 3, "warmup_updates": 0, "ridge": 1e-3, "eps": 1e-4}
    options = {name: value for name, value in wanted.items() if name in inspect.signature(entry.cls).parameters}
    optimizer = build(entry, model, **entry.deterministic, **options)
    for step in range(7):
        x, y = (t[order] for t in make_batch("categorical", n, 12, 3, seed=step))
        for own in zip(x.split(part), y.split(part), strict=True):
            optimizer.accumulate(make_closure(model, *own, "categorical"))
        optimizer.step()
    return torch.cat([(p - q).flatten() for p, q in zip(parameters(model), before, strict=True)])


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.second_order], ids=lambda entry: entry.name)
@pytest.mark.parametrize("how", SPLITS)
@pytest.mark.parametrize("make", [wide, with_idle_inputs, with_equal_outputs], ids=lambda make: make.__name__)
def test_neither_the_split_nor_the_order_of_the_examples_counts(entry, make, how):
    expected = moves(entry, make)
    found = moves(entry, make, part=SPLITS[how], permuted=how == "permuted")
    assert (found - expected).norm() < 1e-7 * expected.norm()
