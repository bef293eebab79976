"""Undamped K-FAC does not see how a network is parametrised: affine inputs, tanh or sigmoid (K-FAC, section 10)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.optim import KFAC
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net

NONE = 1e-300  # too small to change any factor


def outputs_after(model, x, y, damping, steps=5):
    settings = {"damping": damping, "damping_method": "plain", "fisher": "exact", "kl_clip": None, "momentum": 0.5}
    optimizer = KFAC(model, lr=0.2, likelihood="gaussian", statistics_every=1, inverses_every=2, **settings)
    for _ in range(steps):
        optimizer.step(make_closure(model, x, y, "gaussian"))
    return model(x).detach()


def affine(x):
    """(x C + c, C, c) of an invertible map."""
    generator = torch.Generator().manual_seed(3)
    C = torch.randn(4, 4, generator=generator, dtype=DTYPE) + 3 * torch.eye(4, dtype=DTYPE)
    c = torch.randn(4, generator=generator, dtype=DTYPE)
    return x @ C + c, C, c


def on_other_inputs(model, C, c):
    """The same function of x as a function of x C + c."""
    other = make_net(4, 6, 5, 3)
    other.load_state_dict(model.state_dict())
    inverse = torch.linalg.inv(C)
    with torch.no_grad():
        other[0].weight.copy_(model[0].weight @ inverse.T)
        other[0].bias.copy_(model[0].bias - other[0].weight @ c)
    return other


def with_sigmoids(model):
    """The same function with σ for tanh: tanh s = 2σ(2s) − 1."""
    other = make_net(4, 6, 5, 3, activation=nn.Sigmoid)
    with torch.no_grad():
        for i in (0, 2, 4):
            before, after = 2.0 if i < 4 else 1.0, 2.0 if i > 0 else 1.0
            weight, bias = model[i].weight, model[i].bias
            shift = weight.sum(dim=1) if i > 0 else 0.0
            other[i].weight.copy_(before * after * weight)
            other[i].bias.copy_(before * (bias - shift))
    return other


@pytest.mark.parametrize(("damping", "same"), [(NONE, True), (1e-2, False)])
def test_affine_maps_of_the_inputs(damping, same):
    x, y = make_batch("gaussian", 30, 4, 3)
    model = make_net(4, 6, 5, 3)
    mapped, C, c = affine(x)
    other = on_other_inputs(model, C, c)
    torch.testing.assert_close(other(mapped), model(x), rtol=1e-12, atol=1e-13)
    start = model(x).detach()
    found, expected = outputs_after(other, mapped, y, damping), outputs_after(model, x, y, damping)
    assert (expected - start).abs().max() > 0.1
    difference = (found - expected).abs().max()
    assert difference < 1e-10 if same else difference > 1e-3


@pytest.mark.parametrize(("damping", "same"), [(NONE, True), (1e-2, False)])
def test_tanh_and_sigmoid(damping, same):
    x, y = make_batch("gaussian", 30, 4, 3)
    model = make_net(4, 6, 5, 3)
    other = with_sigmoids(model)
    torch.testing.assert_close(other(x), model(x), rtol=1e-12, atol=1e-13)
    start = model(x).detach()
    found, expected = outputs_after(other, x, y, damping), outputs_after(model, x, y, damping)
    assert (expected - start).abs().max() > 0.1
    difference = (found - expected).abs().max()
    assert difference < 1e-9 if same else difference > 1e-3
