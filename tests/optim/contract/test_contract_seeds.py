"""All chance of a registered optimizer is in its state: resumed with another seed, it goes on with the first one."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from kftune.optim import OPTIMIZERS
from kftune.optim.curvature.random import Random
from tests.optim._contract import build, network, parameters, train


def with_chance():
    """(entry, options) for every option that draws numbers."""
    for entry in OPTIMIZERS:
        arguments = inspect.signature(entry.cls).parameters
        name = next((name for name in ("fisher", "labels") if name in arguments), None)
        for label in ("mc", "permuted") if name else ():
            own = {"variant": "kfac_damping"} if "variant" in arguments else {}
            yield pytest.param(entry, {name: label, **own}, id=f"{entry.name}-{label}")
        if "inversion" in arguments:
            yield pytest.param(entry, {"inversion": "lu"}, id=f"{entry.name}-lu")


@pytest.mark.parametrize(("entry", "options"), list(with_chance()))
def test_a_resumed_optimizer_draws_as_the_first_one(entry, options):
    model = network()
    optimizer = build(entry, model, seed=1, **options)
    train(optimizer, model, 3)
    other = network()
    other.load_state_dict(model.state_dict())
    resumed = build(entry, other, seed=99, **options)
    resumed.load_state_dict(optimizer.state_dict())
    assert train(optimizer, model, 6, first=10) == train(resumed, other, 6, first=10)
    for found, expected in zip(parameters(other), parameters(model), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("entry", "options"), list(with_chance()))
def test_states_without_seeds_still_load(entry, options):
    """As they were saved before: with the seed given, all goes on as it would have."""
    model = network()
    optimizer = build(entry, model, seed=1, **options)
    train(optimizer, model, 3)
    old = copy.deepcopy(optimizer.state_dict())
    old["extra"].pop("noise_seed", None)
    old["extra"]["random"].pop("seed")
    other = network()
    other.load_state_dict(model.state_dict())
    resumed = build(entry, other, seed=1, **options)
    resumed.load_state_dict(old)
    assert train(optimizer, model, 6, first=10) == train(resumed, other, 6, first=10)


def test_a_stream_that_begins_anew_is_the_first_seeds():
    """In another process, say: the state of the generator does not fit there, the seed does."""
    first, process = Random(1, process=0, device=torch.device("cpu")), torch.device("cpu")
    drawn = []
    for seed in (1, 99):
        other = Random(seed, process=1, device=process)
        other.load(first.state())
        drawn.append(torch.rand(4, generator=other.on(process)))
    assert torch.equal(*drawn)
