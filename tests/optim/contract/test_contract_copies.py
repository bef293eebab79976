"""What every registered optimizer must do: copies, pickles and snapshots that go on by themselves."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from tests.optim._contract import build, every, network, parameters, train
from tests.optim._dense import make_batch, make_closure
from tests.optim._models import task
from tests.optim.contract.test_contract_loading import same
from tests.optim.contract.test_contract_models import skip_unless_it_takes_any_layers


def by_torch(pair):
    buffer = io.BytesIO()
    torch.save(pair, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair)), "torch.save": by_torch}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@every
@ways
@pytest.mark.parametrize("done", [0, 7])
def test_a_copy_goes_on_bit_for_bit_and_alone(entry, way, done):
    model = network()
    optimizer = build(entry, model, seed=3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    train(optimizer, model, done)
    if done:
        scheduler.step()
    for twins in (way((model, optimizer)), way((optimizer, model))[::-1]):
        twin, copied = twins
        before = parameters(model)
        losses = train(copied, twin, 8, first=20)
        assert all(map(torch.equal, parameters(model), before))
        twin_again, again = way((model, optimizer))
        assert train(again, twin_again, 8, first=20) == losses
        assert all(map(torch.equal, parameters(twin), parameters(twin_again)))
        assert copied.coverage() == optimizer.coverage()
    losses = train(optimizer, model, 8, first=20)
    assert all(map(torch.equal, parameters(twin), parameters(model)))


@every
def test_a_copy_of_real_layers_goes_on_bit_for_bit(entry):
    model, x, y = task("resnet")
    skip_unless_it_takes_any_layers(entry, model)
    optimizer = build(entry, model)
    optimizer.step(make_closure(model, x, y, "categorical"))
    twin, copied = copy.deepcopy((model, optimizer))
    for _ in range(6):
        assert (
            optimizer.step(make_closure(model, x, y, "categorical")).item()
            == copied.step(make_closure(twin, x, y, "categorical")).item()
        )
    assert all(map(torch.equal, parameters(twin), parameters(model)))


@every
@ways
def test_half_an_update_is_not_copied(entry, way):
    model = network()
    optimizer = build(entry, model)
    optimizer.accumulate(make_closure(model, *make_batch("categorical", 24, 6, 3), "categorical"))
    with pytest.raises(RuntimeError, match="between accumulate"):
        way((model, optimizer))
    optimizer.step()
    way((model, optimizer))


@every
def test_a_state_dict_is_a_snapshot(entry):
    model = network()
    optimizer = build(entry, model)
    train(optimizer, model, 6)
    state = optimizer.state_dict()
    then = copy.deepcopy(state)
    train(optimizer, model, 6, first=10)
    assert same(state, then)
    now = optimizer.state_dict()
    assert not state["state"] or not same(state, now)  # which a method without any does not change
    for own in (*now["state"].values(), *now["extra"].get("layers", {}).values()):
        for tensor in own.values():
            if isinstance(tensor, torch.Tensor):
                tensor.zero_()
    twin = network()
    reference = build(entry, twin)
    train(reference, twin, 6)
    train(reference, twin, 6, first=10)
    assert train(optimizer, model, 6, first=20) == train(reference, twin, 6, first=20)
