"""What every registered optimizer's averages are of a layer that is first used late: of its own values alone."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from kftune.optim import KFAC
from tests.optim._contract import build, every
from tests.optim._dense import DTYPE, make_batch, make_closure, relative_error

WITHOUT, WITH = 22, 4  # updates


class Growing(nn.Module):
    """Its middle layer is left out until it is switched on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.late, self.last = (nn.Linear(*sizes, dtype=DTYPE) for sizes in ((6, 5), (5, 5), (5, 3)))
        self.grown = False

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.late(h)) if self.grown else h)


def settings(entry):
    """Nothing moves, everything is averaged at every update, and labels are not drawn."""
    wanted = {
        "lr": 0.0,
        "weight_decay": 0.0,
        "statistics_every": 1,
        "scalings_every": 1,
        "inverses_every": 1,
        "warmup_updates": 0,
        "m_max": 0.95,
        "ridge": 1e-3,
        "averaging": 0.9,
    }
    known = inspect.signature(entry.cls).parameters
    return entry.deterministic | {name: value for name, value in wanted.items() if name in known}


def update(optimizer, model, step):
    optimizer.step(make_closure(model, *make_batch("categorical", 24, 6, 3, seed=step), "categorical"))


AVERAGES = ("covariance", "scalings", "exp_avg", "exp_avg_sq", "average")


def averages(optimizer, model):
    """All averages that are kept of the late layer, made independent of the signs of eigenvectors."""
    state = optimizer.state_dict()
    found = {}
    for name, p in (("weight", model.late.weight), ("bias", model.late.bias)):
        found |= {f"{name}/{key}": value for key, value in optimizer.state.get(p, {}).items()}
    found |= state["extra"].get("layers", {}).get("late", {})
    found = {key: value for key, value in found.items() if key.endswith(AVERAGES)}
    found = {key: value.abs() if key.endswith("exp_avg") else value for key, value in found.items()}
    for side, moments in state["extra"].get("coarse_moments", {}).items():
        found[side] = moments["values"][1]  # with every layer
    return found


@every
def test_they_are_those_of_an_optimizer_that_begins_there(entry):
    if entry.chains_only:
        pytest.skip("its chain must not change")
    found = []
    for first in (0, WITHOUT):
        model = Growing()
        optimizer = build(entry, model, **settings(entry))
        for step in range(first, WITHOUT + WITH):
            model.grown = step >= WITHOUT
            update(optimizer, model, step)
        found.append(averages(optimizer, model))
    assert found[0].keys() == found[1].keys()
    for key, expected in found[1].items():
        torch.testing.assert_close(found[0][key], expected, rtol=1e-6, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")


@every
def test_a_layer_that_is_used_now_and_then_counts_its_own(entry):
    if entry.chains_only:
        pytest.skip("its chain must not change")
    used = [3, 9, 10, 21]
    found = []
    for steps in (range(22), used):
        model = Growing()
        optimizer = build(entry, model, **settings(entry))
        for step in steps:
            model.grown = step in used
            update(optimizer, model, step)
        own = averages(optimizer, model)
        found.append({key: value for key, value in own.items() if key.endswith(("covariance", "scalings"))})
    for key, expected in found[1].items():
        torch.testing.assert_close(found[0][key], expected, rtol=1e-6, atol=1e-9)


def test_the_second_of_two_values_counts_half():
    """By torch alone."""
    model = Growing()
    optimizer = KFAC(model, lr=0.0, likelihood="categorical", statistics_every=1, warmup_updates=0)
    inputs = []
    for step in range(WITHOUT + 2):
        model.grown = step >= WITHOUT
        update(optimizer, model, step)
        x = make_batch("categorical", 24, 6, 3, seed=step)[0]
        h = torch.tanh(model.first(x)).detach()
        inputs.append(torch.cat([h, torch.ones(24, 1, dtype=DTYPE)], dim=1))
    expected = sum(a.T @ a for a in inputs[-2:]) / 48
    assert relative_error(optimizer.state_dict()["extra"]["layers"]["late"]["input_covariance"], expected) < 1e-12


def test_the_iterates_of_a_parameter_that_is_unfrozen_late():
    """Its average is the plain mean at first, as that of the others was."""
    model = Growing()
    model.grown = True
    model.late.requires_grad_(requires_grad=False)
    optimizer = KFAC(model, lr=0.3, likelihood="categorical", averaging=0.99)
    for step in range(30):
        update(optimizer, model, step)
    model.late.requires_grad_(requires_grad=True)
    seen = []
    for step in range(30, 33):
        update(optimizer, model, step)
        seen.append(model.late.weight.detach().clone())
    with optimizer.evaluation_parameters():
        torch.testing.assert_close(model.late.weight.detach(), torch.stack(seen).mean(dim=0))


@every
def test_states_from_before_values_were_counted_go_on_as_they_did(entry):
    """All of them had been counted by the optimizer."""
    models, own = [Growing(), Growing()], []
    for model in models:
        model.grown = True
        optimizer = build(entry, model, **settings(entry))
        for step in range(5):
            update(optimizer, model, step)
        own.append(optimizer)
    state = own[1].state_dict()
    for parameter in state["state"].values():
        for key in ("n_averaged", "n_steps"):
            parameter.pop(key, None)
    state["extra"].pop("n_averaged", None)
    for moments in state["extra"].get("coarse_moments", {}).values():
        moments.pop("counts")
    fresh = build(entry, models[1], **settings(entry))
    fresh.load_state_dict(state)
    for step in range(5, 8):
        update(own[0], models[0], step)
        update(fresh, models[1], step)
    for found, expected in zip(averages(fresh, models[1]).values(), averages(own[0], models[0]).values(), strict=True):
        assert torch.equal(found, expected)
