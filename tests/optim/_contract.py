"""What the suites over all registered optimizers share."""

from __future__ import annotations

import pytest

from kftune.optim import OPTIMIZERS
from tests.optim._dense import make_batch, make_closure, make_net

ENTRIES = list(OPTIMIZERS)
LOOP_PARAMETERS = {"batch_size", "effective_batch_size", "full_batch_at"}

every = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def build(entry, model, *, likelihood="categorical", seed=0, **hyperparameters):
    return entry.build(model, likelihood=likelihood, seed=seed, params={**entry.example, **hyperparameters})


def network(seed=0, *, bias=True):
    return make_net(6, 8, 3, bias=bias, seed=seed)


def train(optimizer, model, steps, *, first=0, likelihood="categorical"):
    """One update per batch of 24; returns the losses."""
    return [
        optimizer.step(make_closure(model, *make_batch(likelihood, 24, 6, 3, seed=first + step), likelihood)).item()
        for step in range(steps)
    ]


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]
