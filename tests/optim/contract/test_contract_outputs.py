"""What every registered optimizer takes for a model's output."""

from __future__ import annotations

import inspect

import pytest
import torch

from kftune.optim import OPTIMIZERS
from tests.optim._contract import build, parameters
from tests.optim._dense import make_batch, make_loss, make_net

FISHERS = ("mc", "exact", "empirical", "permuted")


def variants(entry):
    """The hyperparameters that choose labels, for every way to choose them; none for methods without."""
    arguments = inspect.signature(entry.cls).parameters
    name = next((name for name in ("fisher", "labels") if name in arguments), None)
    own = {"variant": "kfac_damping"} if "variant" in arguments else {}
    return [{}] if name is None else [{name: fisher, **own} for fisher in FISHERS]


CASES = [pytest.param(entry, own, id=f"{entry.name}-{own}") for entry in OPTIMIZERS for own in variants(entry)]


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize(("entry", "options"), CASES)
def test_one_output_of_each_example_needs_no_dimension(entry, options, likelihood):
    """(N,), as ``squeeze(-1)`` makes it, is (N, 1)."""
    found = []
    for squeezed in (False, True):
        model = make_net(4, 5, 1)
        optimizer = build(entry, model, likelihood=likelihood, **options)
        for step in range(3):
            x, y = make_batch(likelihood, 8, 4, 1, seed=step)

            def closure(model=model, x=x, y=y, squeezed=squeezed):
                output = model(x).squeeze(-1) if squeezed else model(x)
                return make_loss(likelihood)(output, y.view_as(output)), output

            optimizer.step(closure)
        found.append(parameters(model))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-11)
