"""ThesisKFAC against a plain transcription of the thesis' five steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kftune.errors import CurvatureError
from kftune.optim import OPTIMIZERS, ThesisKFAC
from kftune.optim.linalg.decompositions import noisy_inverses
from tests.optim._contract import build, network, train
from tests.optim._dense import (
    DTYPE,
    layer_matrix,
    linear_layers,
    make_batch,
    make_closure,
    make_net,
    relative_error,
    stored_factors,
)


def by_maximum(matrix, signed):
    return matrix / (matrix.max() if signed else matrix.abs().max())


class Transcription:
    """The five steps in dense float64 on a tanh network with squared error, without any of the library's parts."""

    def __init__(self, model, *, lr, m_rate, m_max, signed, seed):
        self.modules = list(linear_layers(model).values())
        self.lr, self.m_rate, self.m_max, self.signed = lr, m_rate, m_max, signed
        self.generator = torch.Generator().manual_seed(seed)
        self.A, self.G, self.N, self.k = {}, {}, {}, 0

    def forward(self, x):
        a, inputs, outputs = x, [], []
        for i, module in enumerate(self.modules):
            inputs.append(a if module.bias is None else torch.cat([a, torch.ones(len(a), 1, dtype=DTYPE)], dim=1))
            outputs.append(inputs[-1] @ layer_matrix(module).T.requires_grad_())
            a = torch.tanh(outputs[-1]) if i < len(self.modules) - 1 else outputs[-1]
        return inputs, outputs

    def update(self, batches):
        n_total = sum(len(x) for x, _ in batches)
        A, G, V = ([0.0] * len(self.modules) for _ in range(3))
        for x, y in batches:  # step 1
            inputs, outputs = self.forward(x)
            dealt = outputs[-1][torch.randperm(len(x), generator=self.generator)].detach()
            for target, statistic in ((dealt, True), (y, False)):
                loss = ((outputs[-1] - target) ** 2).mean(dim=1).sum()
                for i, g in enumerate(torch.autograd.grad(loss, outputs, retain_graph=True)):
                    a = inputs[i].detach()
                    if statistic:
                        A[i] = A[i] + a.T @ a / n_total
                        G[i] = G[i] + g.T @ g / n_total
                    else:
                        V[i] = V[i] + g.T @ a / n_total
        alpha = min(0.05 * self.k * self.m_rate, self.m_max)
        for i, module in enumerate(self.modules):
            A[i], G[i], V[i] = (by_maximum(matrix, self.signed) for matrix in (A[i], G[i], V[i]))  # step 2
            self.A[i] = alpha * self.A.get(i, 0) + (1 - alpha) * A[i]  # step 3
            self.G[i] = alpha * self.G.get(i, 0) + (1 - alpha) * G[i]
            N = torch.linalg.inv(self.G[i]) @ V[i] @ torch.linalg.inv(self.A[i])  # steps 4 and 5
            self.N[i] = alpha * self.N.get(i, 0) + (1 - alpha) * by_maximum(N, self.signed)
            with torch.no_grad():
                d_i = module.weight.shape[1]
                module.weight -= self.lr * self.N[i][:, :d_i]
                if module.bias is not None:
                    module.bias -= self.lr * self.N[i][:, d_i]
        self.k += 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("normalization", ["max", "signed_max"])
@pytest.mark.parametrize("inversion", ["cholesky", "lu"])
def test_it_is_the_thesis_algorithm(inversion, normalization, bias):
    settings = {"lr": 0.02, "m_rate": 3.0, "m_max": 0.4}
    ours, theirs = make_net(4, 6, 3, bias=bias), make_net(4, 6, 3, bias=bias)
    settings_of_ours = settings | {"normalization": normalization, "inversion": inversion, "ridge": 0.0, "seed": 7}
    optimizer = ThesisKFAC(ours, likelihood="gaussian", **settings_of_ours)
    reference = Transcription(theirs, signed=normalization == "signed_max", seed=7, **settings)
    start = layer_matrix(ours[0])
    for step in range(6):
        batches = [make_batch("gaussian", n, 4, 3, seed=10 * step + n) for n in (30, 45)]
        for x, y in batches:
            optimizer.accumulate(make_closure(ours, x, y, "gaussian"))
        optimizer.step()
        reference.update(batches)
    assert relative_error(layer_matrix(ours[0]), start) > 1e-2
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        # Undamped inverses amplify rounding by the factors' condition numbers, up to about 1e4 here.
        assert relative_error(found.detach(), expected.detach()) < 1e-9


def test_lr_is_the_largest_change_of_a_weight():
    model = make_net(4, 6, 3)
    before = {name: layer_matrix(module) for name, module in linear_layers(model).items()}
    x, y = make_batch("gaussian", 40, 4, 3)
    ThesisKFAC(model, lr=0.07, likelihood="gaussian").step(make_closure(model, x, y, "gaussian"))
    for name, module in linear_layers(model).items():
        assert (layer_matrix(module) - before[name]).abs().max().item() == pytest.approx(0.07)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", lambda k: 0.05 * k * 0.8),
        ("exponential", lambda k: 1 - math.exp(-0.1 * k * 0.8)),
        ("paper", lambda k: k / (k + 1)),
        ("constant", lambda k: 0.9 if k else 0.0),
    ],
)
def test_momentum_schedules(schedule, expected):
    optimizer = ThesisKFAC(make_net(2, 2), m_rate=0.8, m_max=0.9, momentum_schedule=schedule, likelihood="gaussian")
    for k in (0, 1, 2, 5, 50, 1000):
        assert optimizer.momentum_at(k) == pytest.approx(min(expected(k), 0.9))


@pytest.mark.parametrize("inversion", ["cholesky", "lu"])
def test_constant_inputs_dead_units_and_small_batches_stay_finite(inversion):
    """Factors that are singular many times over, in float32: zero-variance pixels, a dead ReLU, two examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 8, bias=False), nn.ReLU(), nn.Linear(8, 20, bias=False))
    with torch.no_grad():
        model[0].weight[0] = -1.0
    optimizer = ThesisKFAC(model, lr=0.01, likelihood="gaussian", inversion=inversion)
    x = torch.rand(50, 20) * (torch.arange(20) < 12)
    for step in range(10):
        batch = x[2 * step : 2 * step + 2]
        optimizer.step(make_closure(model, batch, batch, "gaussian"))
    for p in model.parameters():
        assert torch.isfinite(p).all()


def test_noise_makes_the_first_inputs_invertible_and_is_small():
    """With ``lu`` only the first layer's inputs get noise, of size ``ridge``, and the same again after a restart."""
    x, y = make_batch("gaussian", 60, 4, 3)
    x[:, 1] = 0.0

    def step(*, ridge, seed=0):
        model = make_net(4, 6, 3, bias=False)
        optimizer = ThesisKFAC(
            model, lr=0.1, likelihood="gaussian", labels="exact", inversion="lu", ridge=ridge, seed=seed
        )
        optimizer.step(make_closure(model, x, y, "gaussian"))
        return [layer_matrix(module) for module in linear_layers(model).values()]

    first, last = step(ridge=1e-9)
    again, other = step(ridge=1e-9), step(ridge=1e-9, seed=1)
    assert torch.equal(first, again[0])
    assert not torch.equal(first, other[0])
    assert torch.equal(last, other[1])
    assert torch.isfinite(first).all()


def test_what_noise_does_not_make_invertible_is_an_error():
    names, zeros = ["the input covariance of layer 'a'"], [torch.zeros(3, 3)]
    with pytest.raises(CurvatureError, match=r"input covariance of layer 'a' .* has no inverse"):
        noisy_inverses(names, zeros, 0.0, noisy=(), generator=torch.Generator())
    (inverse,) = noisy_inverses(names, [torch.eye(3)], 0.0, noisy=(0,), generator=torch.Generator())
    assert torch.equal(inverse, torch.eye(3))


def test_a_zero_gradient_leaves_the_weights():
    model = make_net(3, 2, bias=False)
    x, _ = make_batch("gaussian", 10, 3, 2)
    before = layer_matrix(model[0])
    optimizer = ThesisKFAC(model, likelihood="gaussian")
    optimizer.step(make_closure(model, x, model(x).detach(), "gaussian"))
    assert torch.equal(layer_matrix(model[0]), before)


def test_other_parameters_follow_their_normalised_gradient():
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)).double()
    x, y = make_batch("gaussian", 10, 4, 2)
    before = model[0].weight.detach().clone()
    optimizer = ThesisKFAC(model, lr=0.1, likelihood="gaussian")
    optimizer.step(make_closure(model, x, y, "gaussian"))
    assert optimizer.coverage()["0.weight"] == "normalised gradient"
    gradient = model[0].weight.grad
    torch.testing.assert_close(before - model[0].weight.detach(), 0.1 * gradient / gradient.abs().max())


def test_factors_are_normalised():
    model = make_net(4, 6, 3)
    optimizer = ThesisKFAC(model, likelihood="gaussian", m_max=0.0)
    x, y = make_batch("gaussian", 40, 4, 3)
    optimizer.step(make_closure(model, x, y, "gaussian"))
    for name in linear_layers(model):
        for factor in stored_factors(optimizer, name):
            assert factor.abs().max().item() == pytest.approx(1.0)


def test_the_thesis_schedule_is_read():
    model = network()
    optimizer = build(OPTIMIZERS.get("kfac_thesis"), model, momentum_schedule="linear", m_rate=1.0, m_max=0.12)
    read = []
    for step in range(4):
        train(optimizer, model, 1, first=step)
        read.append(optimizer.readings()["momentum"])
    assert read == pytest.approx([0.0, 0.05, 0.1, 0.12])
