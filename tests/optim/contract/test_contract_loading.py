"""What every registered optimizer makes of the state of another model, or of the same one in another order."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kftune.optim import OPTIMIZERS, SOAP, Muon, Shampoo
from tests.optim._contract import build, every, network, parameters, train
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net


def without_names(state):
    """As torch's optimizers over plain parameters save it, and as kftune did."""
    old = copy.deepcopy(state)
    for group in old["param_groups"]:
        group.pop("param_names")
    old["extra"].pop("shapes")
    return old


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def trained(entry, *sizes, steps=6):
    """(model, optimizer, its closure), after some updates of a net of these sizes."""
    model = make_net(*sizes)
    optimizer = build(entry, model)
    closure = make_closure(model, *make_batch("categorical", 12, sizes[0], sizes[-1]), "categorical")
    for _ in range(steps):
        optimizer.step(closure)
    return model, optimizer, closure


@every
@pytest.mark.parametrize("form", [copy.deepcopy, without_names])
def test_the_state_of_another_models_layers_is_refused_by_name(entry, form):
    _, other, _ = trained(entry, 6, 8, 3)
    model, optimizer, closure = trained(entry, 7, 9, 3)
    twin, undisturbed, twins = trained(entry, 7, 9, 3)
    state = form(other.state_dict())
    state["param_groups"][0]["lr"] = 123.0
    with pytest.raises(
        ValueError, match=r"'0(\.weight|\.bias)?'.* has the shape \((8, 6|8,|7, 7)\), here it is \((9, 7|9,|8, 8)\)"
    ):
        optimizer.load_state_dict(state)
    assert same(optimizer.state_dict(), undisturbed.state_dict())
    for _ in range(6):
        assert optimizer.step(closure).item() == undisturbed.step(twins).item()
    assert all(map(torch.equal, parameters(model), parameters(twin)))


class Ordered(nn.Module):
    """6-7-8-3, its layers registered in one order or another."""

    def __init__(self, order):
        super().__init__()
        torch.manual_seed(0)
        made = {"a": nn.Linear(6, 7), "b": nn.Linear(7, 8), "c": nn.Linear(8, 3)}
        for name in order:
            self.add_module(name, made[name].double())

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


@every
def test_the_order_of_registration_does_not_count(entry):
    model, other = Ordered("abc"), Ordered("bac")
    optimizer = build(entry, model, **entry.deterministic)
    train(optimizer, model, 7)
    other.load_state_dict(model.state_dict())
    resumed = build(entry, other, **entry.deterministic)
    resumed.load_state_dict(optimizer.state_dict())
    train(optimizer, model, 7, first=10)
    train(resumed, other, 7, first=10)
    found = dict(other.named_parameters())
    for name, expected in model.named_parameters():
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-8)
    assert resumed.coverage() == {name: optimizer.coverage()[name] for name in resumed.coverage()}


@every
def test_a_renamed_layer_is_another_one(entry):
    model, other = Ordered("abc"), Ordered("abc")
    other.d = other._modules.pop("a")
    other.forward = lambda x: other.c(torch.tanh(other.b(torch.tanh(other.d(x)))))
    optimizer, renamed = build(entry, model), build(entry, other)
    train(optimizer, model, 2)
    with pytest.raises(ValueError, match=r"no parameter 'd.weight', which this optimizer has"):
        renamed.load_state_dict(optimizer.state_dict())


@every
def test_states_without_names_are_taken_by_position(entry):
    model, other = network(), network(seed=1)
    optimizer = build(entry, model)
    train(optimizer, model, 7)
    other.load_state_dict(model.state_dict())
    resumed = build(entry, other)
    resumed.load_state_dict(without_names(optimizer.state_dict()))
    assert train(optimizer, model, 6, first=10) == train(resumed, other, 6, first=10)


@every
def test_the_same_parameters_in_other_groups_are_refused(entry):
    if "alpha" in entry.readings:
        pytest.skip("it takes one group")
    states = []
    for split in (2, 3):
        optimizer = build(entry, network())
        (group,) = optimizer.param_groups
        own = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        names, params = group["param_names"], group["params"]
        group["param_names"], group["params"] = names[:split], params[:split]
        optimizer.param_groups.append(own | {"params": params[split:], "param_names": names[split:]})
        states.append((optimizer, optimizer.state_dict()))
    with pytest.raises(ValueError, match=r"parameter '2.weight' is in group 1 of the state_dict, and in group 0 here"):
        states[1][0].load_state_dict(states[0][1])


def test_options_that_keep_other_things_are_refused_by_name():
    model = network()
    without, with_left = SOAP(model, max_dimension=6), SOAP(model)
    train(without, model, 2)
    train(with_left, model, 2)
    with pytest.raises(ValueError, match=r"no left factor of parameter '0.weight'.* other options"):
        SOAP(model).load_state_dict(without.state_dict())
    with pytest.raises(
        ValueError, match=r"left_covariance of parameter '0.weight', which this optimizer does not keep"
    ):
        SOAP(model, max_dimension=6).load_state_dict(with_left.state_dict())
    hidden = Muon(model, matrices="all")
    train(hidden, model, 2)
    with pytest.raises(
        ValueError, match=r"momentum_buffer of parameter '2.weight', which this optimizer does not keep"
    ):
        Muon(model).load_state_dict(hidden.state_dict())


@pytest.mark.parametrize("make", [SOAP, Shampoo, Muon])
def test_convolutions_are_kept_as_matrices(make):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)).double()
    x, y = torch.randn(5, 2, 4, 4, dtype=DTYPE), torch.randint(3, (5,))
    optimizer = make(model)
    for _ in range(3):
        optimizer.step(make_closure(model, x, y, "categorical"))
    resumed = make(model)
    resumed.load_state_dict(optimizer.state_dict())
    assert same(resumed.state_dict(), optimizer.state_dict())


LAYERWISE = [entry for entry in OPTIMIZERS if hasattr(entry.cls, "layer_shapes")]


@pytest.mark.parametrize("options", [{}, {"damping_method": "exact"}, {"inverses_every": 1}, {"block_diagonal": True}])
@pytest.mark.parametrize("entry", LAYERWISE, ids=lambda entry: entry.name)
def test_whatever_is_kept_of_a_layer_says_its_dimensions(entry, options):
    model = network()
    try:
        optimizer = build(entry, model, **options)
    except (TypeError, ValueError):
        pytest.skip("no such option")
    for n in (2, 40):
        optimizer.step(make_closure(model, *make_batch("categorical", n, 6, 3), "categorical"))
        found = {key for state in optimizer.state_dict()["extra"]["layers"].values() for key in state}
        assert found <= set(entry.cls.layer_shapes)
