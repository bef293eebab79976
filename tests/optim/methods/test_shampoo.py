"""Shampoo against fractional powers of dense statistics, and its reductions to SGD and AdamW."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import fractional_matrix_power
from torch import nn

from kftune.errors import CurvatureError, DivergenceError
from kftune.optim.matrixwise.roots import inverse_roots
from kftune.optim.methods.adamw import AdamW
from kftune.optim.methods.sgd import SGD
from kftune.optim.methods.shampoo import Shampoo
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net, relative_error

EXACT = 1e-10  # relative, float64


def train(optimizer, model, steps, d_in=5, d_out=3):
    for step in range(steps):
        optimizer.step(make_closure(model, *make_batch("gaussian", 12, d_in, d_out, seed=step), "gaussian"))


def gradients_along(model, steps, change, d_in=5, d_out=3):
    """Follow ``change(step, parameter, gradient)``, which returns the new parameter."""
    for step in range(steps):
        x, y = make_batch("gaussian", 12, d_in, d_out, seed=step)
        model.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(change(step, p, p.grad.clone()))


def power(matrix, damping, exponent):
    """(M + δλ_max I)^exponent by scipy."""
    top = torch.linalg.eigvalsh(matrix)[-1]
    damped = matrix + damping * top * torch.eye(len(matrix), dtype=DTYPE)
    return torch.from_numpy(fractional_matrix_power(damped.numpy(), exponent).real.copy())


class Reference:
    """Shampoo of matrices as its papers write it: biased averages, corrected where they are used."""

    def __init__(self, *, lr, beta1, decay, damping, every, grafting, beta2=0.999, eps=1e-8, longest=100, wd=0.0):
        self.lr, self.beta1, self.beta2, self.eps, self.wd = lr, beta1, beta2, eps, wd
        self.decay, self.damping, self.every, self.grafting, self.longest = decay, damping, every, grafting, longest
        self.state = {}

    def __call__(self, step, W, G):
        t = step + 1
        shape, G = W.shape, G.flatten(1)
        sides = [n <= self.longest for n in G.shape]
        s = self.state.setdefault(W, {"L": 0, "R": 0, "m": 0, "v": 0, "roots": None})
        s["L"] = self.decay * s["L"] + (1 - self.decay) * G @ G.T
        s["R"] = self.decay * s["R"] + (1 - self.decay) * G.T @ G
        s["m"] = self.beta1 * s["m"] + (1 - self.beta1) * G
        s["v"] = self.beta2 * s["v"] + (1 - self.beta2) * G**2
        M = s["m"] / (1 - self.beta1**t)
        D = M / ((s["v"] / (1 - self.beta2**t)).sqrt() + self.eps) if self.grafting == "adam" else M
        if t % self.every == 0:
            corrected = [factor / (1 - self.decay**t) for factor in (s["L"], s["R"])]
            s["roots"] = [
                power(factor, self.damping, -1 / (2 * sum(sides))) if has else torch.eye(len(factor), dtype=DTYPE)
                for factor, has in zip(corrected, sides, strict=True)
            ]
        P = D
        if s["roots"] is not None:
            P = s["roots"][0] @ M @ s["roots"][1]
            if self.grafting != "none":
                P = P * D.norm() / P.norm()
        return ((1 - self.lr * self.wd) * W.flatten(1) - self.lr * P).view(shape)


SETTINGS = {"lr": 0.03, "beta1": 0.8, "damping": 1e-4, "weight_decay": 0.05}


@pytest.mark.parametrize("grafting", ["adam", "sgd", "none"])
@pytest.mark.parametrize("every", [1, 3])
def test_updates_are_the_papers(grafting, every):
    ours, theirs = make_net(5, 7, 3, bias=False), make_net(5, 7, 3, bias=False)
    train(Shampoo(ours, factor_decay=0.9, inverses_every=every, grafting=grafting, **SETTINGS), ours, 7)
    reference = Reference(lr=0.03, beta1=0.8, decay=0.9, damping=1e-4, every=every, grafting=grafting, wd=0.05)
    gradients_along(theirs, 7, reference)
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert relative_error(found.detach(), expected.detach()) < EXACT


def test_a_side_that_is_too_long_is_left_alone():
    """5 → 7 → 3 with max_dimension 5: the sides of 7 have no factor, the others the exponent −1/2."""
    ours, theirs = make_net(5, 7, 3, bias=False), make_net(5, 7, 3, bias=False)
    optimizer = Shampoo(ours, factor_decay=0.9, inverses_every=2, max_dimension=5, **SETTINGS)
    assert optimizer.coverage() == {
        "0.weight": "Shampoo, right side only: 7 > max_dimension 5",
        "2.weight": "Shampoo, left side only: 7 > max_dimension 5",
    }
    train(optimizer, ours, 5)
    reference = Reference(lr=0.03, beta1=0.8, decay=0.9, damping=1e-4, every=2, grafting="adam", wd=0.05, longest=5)
    gradients_along(theirs, 5, reference)
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert relative_error(found.detach(), expected.detach()) < EXACT


def test_a_convolution_is_one_matrix():
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Unflatten(1, (2, 3, 3)), nn.Conv2d(2, 3, 2, bias=False), nn.Flatten()).double()

    ours, theirs = make(), make()
    train(Shampoo(ours, factor_decay=0.9, inverses_every=2, **SETTINGS), ours, 5, 18, 12)
    reference = Reference(lr=0.03, beta1=0.8, decay=0.9, damping=1e-4, every=2, grafting="adam", wd=0.05)
    gradients_along(theirs, 5, reference, 18, 12)
    assert relative_error(ours[1].weight.detach(), theirs[1].weight.detach()) < EXACT


def test_a_decay_of_one_is_the_sum_of_the_2018_paper():
    """But for √updates: (mean)^(−¼) · (mean)^(−¼) = √t · (sum)^(−¼) · (sum)^(−¼)."""
    ours, theirs = make_net(5, 3, bias=False), make_net(5, 3, bias=False)
    optimizer = Shampoo(
        ours, lr=0.1, beta1=0.0, factor_decay=1.0, damping=1e-4, inverses_every=1, grafting="none", weight_decay=0.0
    )
    train(optimizer, ours, 6)
    L = R = 0

    def change(step, W, G):
        nonlocal L, R
        L, R = L + G @ G.T, R + G.T @ G
        return W - 0.1 * (step + 1) ** 0.5 * power(L, 1e-4, -0.25) @ G @ power(R, 1e-4, -0.25)

    gradients_along(theirs, 6, change)
    assert relative_error(ours[0].weight.detach(), theirs[0].weight.detach()) < EXACT


def weights_after(make_optimizer, steps=6):
    model = make_net(5, 7, 3)
    train(make_optimizer(model), model, steps)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("never", [{"inverses_every": 1000}, {"inverses_every": 1, "max_dimension": 0}])
def test_without_preconditioning_it_is_its_grafting_method(never):
    adam = {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1}
    found = weights_after(lambda model: Shampoo(model, grafting="adam", **adam, **never))
    assert relative_error(found, weights_after(lambda model: AdamW(model, **adam))) < 1e-13
    found = weights_after(lambda model: Shampoo(model, lr=0.1, beta1=0.0, grafting="sgd", **never))
    assert relative_error(found, weights_after(lambda model: SGD(model, lr=0.1, momentum=0.0))) < 1e-13
    preconditioned = weights_after(lambda model: Shampoo(model, lr=0.1, beta1=0.0, grafting="sgd", inverses_every=1))
    assert relative_error(preconditioned, found) > 1e-2


@pytest.mark.parametrize(("grafting", "fallback"), [("adam", "AdamW"), ("sgd", "SGD"), ("none", "AdamW")])
def test_vectors_follow_the_grafting_method(grafting, fallback):
    model = make_net(5, 7, 3)
    coverage = Shampoo(model, grafting=grafting).coverage()
    assert coverage == {"0.weight": "Shampoo", "0.bias": fallback, "2.weight": "Shampoo", "2.bias": fallback}


def test_vectors_can_be_preconditioned():
    """Full-matrix AdaGrad's direction for a lone vector: (mean gg^T)^(−½) g."""
    model, target = nn.Linear(1, 4, dtype=DTYPE), torch.arange(4.0, dtype=DTYPE)
    model.weight.requires_grad_(False)
    optimizer = Shampoo(
        model, lr=0.1, beta1=0.0, factor_decay=1.0, damping=1e-3, inverses_every=1, grafting="none",
        precondition_1d=True,
    )  # fmt: skip
    assert optimizer.coverage() == {"weight": "frozen", "bias": "Shampoo"}
    expected, moments = model.bias.detach().clone(), []
    for step in range(4):
        x = torch.randn(3, 1, generator=torch.Generator().manual_seed(step), dtype=DTYPE)
        y = target.expand(3, 4)
        residual = x @ model.weight.detach().T + expected - y
        g = 2 * residual.sum(dim=0) / residual.numel()
        moments.append(torch.outer(g, g))
        expected = expected - 0.1 * power(torch.stack(moments).mean(dim=0), 1e-3, -0.5) @ g
        optimizer.step(make_closure(model, x, y, "gaussian"))
    assert relative_error(model.bias.detach(), expected) < EXACT


def rotated_run(make_optimizer, rotation):
    """The first layer's weights after training on x·rotationᵀ from W·rotationᵀ, rotated back."""
    model = make_net(5, 7, 3)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight @ rotation.T)
    optimizer = make_optimizer(model)
    for step in range(8):
        x, y = make_batch("gaussian", 12, 5, 3, seed=step)
        optimizer.step(make_closure(model, x @ rotation.T, y, "gaussian"))
    return model[0].weight.detach() @ rotation


def test_rotating_the_inputs_rotates_the_trajectory():
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=DTYPE)).Q
    identity = torch.eye(5, dtype=DTYPE)

    def error(make_optimizer):
        return relative_error(rotated_run(make_optimizer, rotation), rotated_run(make_optimizer, identity))

    assert error(lambda model: Shampoo(model, lr=0.1, grafting="sgd", inverses_every=2)) < 1e-9
    assert error(lambda model: AdamW(model, lr=0.01)) > 1e-3


def test_no_gradient_at_all_changes_nothing():
    model = make_net(5, 7, 3, bias=False)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = Shampoo(model, inverses_every=1)

    def closure():
        output = model(torch.ones(4, 5, dtype=DTYPE))
        return 0 * output.sum(), output

    for _ in range(3):
        optimizer.step(closure)
    for found, expected in zip(model.parameters(), before, strict=True):
        assert torch.equal(found, expected)


def test_an_overflown_factor_is_an_error_that_names_it():
    model = make_net(5, 3, bias=False).float()
    x, y = (t.float() for t in make_batch("gaussian", 12, 5, 3))

    def closure():
        output = model(x)
        return 1e25 * nn.functional.mse_loss(output, y), output

    with pytest.raises(DivergenceError, match=r"left factor of parameter '0\.weight' is not finite"):
        Shampoo(model, inverses_every=1).step(closure)


def test_a_factor_without_roots_is_an_error_that_names_it():
    factor = torch.full((3, 3), torch.inf)
    with pytest.raises(CurvatureError, match=r"the left factor \(3 × 3"):
        inverse_roots(["left factor"], [factor], damping=1e-6, exponents=[0.25])
