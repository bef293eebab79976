"""What every registered optimizer must do: saving and loading, errors half-way, leaving no trace."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

from kftune.errors import DivergenceError
from tests.optim._contract import build, every, network, parameters, train
from tests.optim._dense import make_batch, make_closure, make_net


@every
@pytest.mark.parametrize("done", [1, 7])
def test_a_saved_and_loaded_optimizer_goes_on_bit_for_bit(entry, done):
    model = network()
    optimizer = build(entry, model)
    train(optimizer, model, done)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network(seed=1)
    other.load_state_dict(saved["model"])
    resumed = build(entry, other, seed=99)
    resumed.load_state_dict(saved["optimizer"])
    assert train(optimizer, model, 12, first=100) == train(resumed, other, 12, first=100)
    for found, expected in zip(parameters(other), parameters(model), strict=True):
        assert torch.equal(found, expected)


def flatten(state):
    if isinstance(state, dict):
        return [leaf for key in state for leaf in flatten(state[key])]
    return [leaf for item in state for leaf in flatten(item)] if isinstance(state, list | tuple) else [state]


@every
def test_loading_leaves_the_callers_state_alone(entry):
    model = network()
    optimizer = build(entry, model)
    train(optimizer, model, 3)
    state = copy.deepcopy(optimizer.state_dict())
    untouched = copy.deepcopy(state)
    other = network()
    resumed = build(entry, other)
    resumed.load_state_dict(state)
    train(resumed, other, 3)
    assert state.keys() == untouched.keys()
    for found, expected in zip(flatten(state), flatten(untouched), strict=True):
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


@every
def test_half_an_update_cannot_be_saved(entry):
    model = network()
    optimizer = build(entry, model)
    optimizer.accumulate(make_closure(model, *make_batch("categorical", 24, 6, 3), "categorical"))
    with pytest.raises(RuntimeError, match="between accumulate"):
        optimizer.state_dict()


@every
def test_foreign_states_are_refused(entry):
    model = network()
    optimizer = build(entry, model)
    with pytest.raises(ValueError, match="not made by a kftune optimizer"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
    with pytest.raises(
        ValueError, match=r"the state_dict has a parameter '4\.(weight|bias)', which this optimizer has not"
    ):
        optimizer.load_state_dict(build(entry, make_net(6, 8, 8, 3)).state_dict())
    state = build(entry, network()).state_dict()
    state["param_groups"][0]["lr"] = 123.0
    state["extra"]["optimizer"] = "Other"
    with pytest.raises(ValueError, match="the state_dict is one of Other, this optimizer is "):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] != 123.0  # nothing was taken over


@every
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_parameters_change(entry, what):
    model = network()
    optimizer = build(entry, model)
    train(optimizer, model, 2)
    before = parameters(model)
    x, y = make_batch("categorical", 24, 6, 3)

    def closure():
        output = model(x)
        loss = nn.functional.cross_entropy(output, y)
        if what == "loss":
            return loss * float("nan"), output
        # The value is finite, the derivative of the root at 0 is not.
        return loss + 0 * loss + (output[0, 0] - output[0, 0].detach()).clamp(min=0).sqrt(), output

    with pytest.raises(DivergenceError, match=f"{what} is not finite"):
        optimizer.step(closure)
    for found, expected in zip(parameters(model), before, strict=True):
        assert torch.equal(found, expected)
    train(optimizer, model, 2)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@every
def test_a_closure_that_raises_leaves_nothing_behind(entry):
    models = [network(), network()]
    disturbed, calm = (build(entry, model) for model in models)
    x, y = make_batch("categorical", 24, 6, 3)

    def failing():
        models[0](1e3 * x)
        raise MemoryError

    disturbed.accumulate(make_closure(models[0], 1e3 * x, y, "categorical"))
    with pytest.raises(MemoryError):
        disturbed.accumulate(failing)
    with pytest.raises(RuntimeError, match="nothing to step from"):
        disturbed.step()
    if hasattr(disturbed, "_gatherer"):  # labels drawn for the dropped batch
        disturbed._gatherer.random.load(calm._gatherer.random.state())
    assert train(disturbed, models[0], 3) == train(calm, models[1], 3)


@every
def test_a_dropped_optimizer_leaves_no_hooks(entry):
    model = network()
    optimizer = build(entry, model)
    train(optimizer, model, 2)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())


@every
def test_tensors_do_not_pile_up(entry):
    model = network()
    optimizer = build(entry, model)

    def n_tensors():
        gc.collect()
        return sum(type(o) in (torch.Tensor, nn.Parameter) for o in gc.get_objects())

    train(optimizer, model, 10)
    before = n_tensors()
    train(optimizer, model, 30)
    assert n_tensors() == before


@every
def test_a_copied_model_is_free_of_the_optimizer(entry):
    model = network()
    optimizer = build(entry, model)
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    x, y = make_batch("categorical", 24, 6, 3)

    def closure():
        twin(1e6 * x)
        return make_closure(model, x, y, "categorical")()

    reference_model = network()
    reference = build(entry, reference_model)
    reference.step(make_closure(reference_model, x, y, "categorical"))
    optimizer.step(closure)
    for found, expected in zip(parameters(model), parameters(reference_model), strict=True):
        assert torch.equal(found, expected)
