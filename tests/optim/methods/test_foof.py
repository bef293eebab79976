"""FOOF's updates against dense solves and its paper's toy example, and its schedule of statistics."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.optim import FOOF
from tests.optim._dense import (
    DTYPE,
    layer_gradient,
    layer_matrix,
    linear_layers,
    make_batch,
    make_closure,
    make_net,
    relative_error,
    stored_factors,
)

EXACT = 1e-10  # relative, float64


def stored_inputs(optimizer, name="0"):
    return optimizer.state_dict()["extra"]["layers"][name]["input_covariance"].clone()


def covariance(x):
    a = torch.cat([x, torch.ones(len(x), 1, dtype=DTYPE)], dim=1)
    return a.T @ a / len(x)


@pytest.mark.parametrize("bias", [True, False])
def test_update_is_the_dense_solve(bias):
    lr, damping = 0.3, 0.05
    model = make_net(4, 6, 3, bias=bias)
    x, y = make_batch("categorical", 12, 4, 3)
    inputs = {"0": x, "2": model[:2](x).detach()}
    before = {name: layer_matrix(module) for name, module in linear_layers(model).items()}
    FOOF(model, lr=lr, damping=damping, momentum=0.0).step(make_closure(model, x, y, "categorical"))
    for name, module in linear_layers(model).items():
        A = covariance(inputs[name]) if bias else inputs[name].T @ inputs[name] / 12
        damped = A + damping * torch.eye(len(A), dtype=DTYPE)
        expected = lr * damping * layer_gradient(module) @ torch.linalg.inv(damped)
        assert relative_error(before[name] - layer_matrix(module), expected) < EXACT


def toy():
    """Inputs (3, 1) and (1, 0), labels 1 and −1, weights 0, ℓ_n = ½(s − y)² (as mse_loss of outputs scaled by √½)."""
    model = nn.Linear(2, 1, bias=False, dtype=DTYPE)
    nn.init.zeros_(model.weight)
    x = torch.tensor([[3.0, 1.0], [1.0, 0.0]], dtype=DTYPE)
    y = torch.tensor([[1.0], [-1.0]], dtype=DTYPE)

    def closure():
        output = model(x)
        return ((output - y) ** 2).mean() / 2, output

    return model, closure


def test_the_papers_toy_is_solved_in_one_step():
    damping = 1e-9
    model, closure = toy()
    FOOF(model, lr=1 / damping, damping=damping, momentum=0.0).step(closure)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[-1.0, 4.0]], dtype=DTYPE), rtol=1e-6, atol=1e-6)
    assert closure()[0].item() < 1e-12


def test_a_large_damping_leaves_the_gradient():
    """‖λPV − V‖/‖V‖ = O(1/λ)."""
    errors = []
    for damping in (1e3, 1e5):
        model, closure = toy()
        FOOF(model, lr=1.0, damping=damping, momentum=0.0).step(closure)
        errors.append(relative_error(-model.weight.detach(), model.weight.grad))
    assert errors[0] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


def test_the_average_of_statistics_is_normalised():
    m = 0.7
    model = make_net(4, 3)
    optimizer = FOOF(model, lr=0.01, factor_decay=m)
    moments = []
    for step in range(5):
        x, y = make_batch("gaussian", 6, 4, 3, seed=step)
        optimizer.step(make_closure(model, x, y, "gaussian"))
        moments.append(covariance(x))
        weights = [m**age for age in reversed(range(len(moments)))]
        expected = sum(w * A for w, A in zip(weights, moments, strict=True)) / sum(weights)
        torch.testing.assert_close(stored_inputs(optimizer), expected)


def test_a_decay_of_one_is_the_plain_mean():
    model = make_net(4, 3)
    optimizer = FOOF(model, lr=0.01, factor_decay=1.0)
    batches = [make_batch("gaussian", 6, 4, 3, seed=step) for step in range(4)]
    for x, y in batches:
        optimizer.step(make_closure(model, x, y, "gaussian"))
    torch.testing.assert_close(stored_inputs(optimizer), covariance(torch.cat([x for x, _ in batches])))


@pytest.mark.parametrize(
    ("schedule", "gathering"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"statistics_window": 1}, [0, 4, 8]),
        ({"statistics_window": 2}, [0, 3, 4, 7, 8]),
        ({"statistics_every": 2}, [0, 2, 4, 6, 8]),
        ({"statistics_every": 4}, [0, 4, 8]),
    ],
)
def test_statistics_are_gathered_when_they_should_be(schedule, gathering):
    model = make_net(4, 3)
    optimizer = FOOF(model, lr=0.01, inverses_every=4, **schedule)
    seen = []
    for step in range(9):
        x, y = make_batch("gaussian", 6, 4, 3, seed=step)
        before = stored_inputs(optimizer) if step else None
        optimizer.step(make_closure(model, x, y, "gaussian"))
        if before is None or not torch.equal(before, stored_inputs(optimizer)):
            seen.append(step)
    assert seen == gathering


def test_initial_statistics_leave_the_parameters_alone():
    model = make_net(4, 3)
    optimizer = FOOF(model, lr=0.1, initial_statistics=3, factor_decay=1.0)
    start = layer_matrix(model[0])
    batches = [make_batch("gaussian", 6, 4, 3, seed=step) for step in range(4)]
    losses = [optimizer.step(make_closure(model, x, y, "gaussian")) for x, y in batches[:3]]
    assert torch.equal(layer_matrix(model[0]), start)
    assert torch.isfinite(torch.stack(losses)).all()
    torch.testing.assert_close(stored_inputs(optimizer), covariance(torch.cat([x for x, _ in batches[:3]])))
    optimizer.step(make_closure(model, *batches[3], "gaussian"))
    assert not torch.equal(layer_matrix(model[0]), start)
    torch.testing.assert_close(stored_inputs(optimizer), covariance(torch.cat([x for x, _ in batches])))


class PapersOrder:
    """Dense FOOF of one layer without bias: step with the old inverse, then invert, then take the batch in."""

    def __init__(self, W, *, lr, damping, m, every, window, initial):
        self.W, self.lr, self.damping, self.m = W, lr, damping, m
        self.every, self.window = every, window
        self.Sigma, self.weight, self.t = torch.zeros(W.shape[1], W.shape[1], dtype=DTYPE), 0.0, 0
        for x in initial:
            self.average(x)
        self.invert()

    def average(self, x):
        """Numerator and denominator of a normalised exponential average."""
        self.Sigma = self.m * self.Sigma + x.T @ x / len(x)
        self.weight = self.m * self.weight + 1

    def invert(self):
        A = self.Sigma / self.weight if self.weight else self.Sigma
        self.inverse = torch.linalg.inv(A + self.damping * torch.eye(len(A), dtype=DTYPE))

    def step(self, x, y):
        V = 2 * (x @ self.W.T - y).T @ x / y.numel()
        self.W = self.W - self.lr * self.damping * V @ self.inverse
        if self.t % self.every == 0:
            self.invert()
        if self.every - self.t % self.every <= self.window:
            self.average(x)
        self.t += 1


@pytest.mark.parametrize("initial", [0, 3])
@pytest.mark.parametrize(("every", "window"), [(1, 1), (3, 3), (4, 2), (4, None)])
@pytest.mark.parametrize("thin", [False, True])
def test_the_papers_order_is_step_then_inversion_then_statistics(every, window, initial, thin):
    settings = {"lr": 0.2, "damping": 0.1}
    n, d_out = (6, 13) if thin else (12, 3)
    errors = {}
    for order in ("step_first", "statistics_first"):
        model = make_net(4, d_out, bias=False)
        batches = [make_batch("gaussian", n, 4, d_out, seed=step) for step in range(initial + 10)]
        optimizer = FOOF(
            model,
            momentum=0.0,
            factor_decay=0.7,
            inverses_every=every,
            statistics_window=window,
            initial_statistics=initial,
            order=order,
            **settings,
        )
        reference = PapersOrder(
            model[0].weight.detach().clone(),
            m=0.7,
            every=every,
            window=window or every,
            initial=[x for x, _ in batches[:initial]],
            **settings,
        )
        errors[order] = 0.0
        for step, (x, y) in enumerate(batches):
            optimizer.step(make_closure(model, x, y, "gaussian"))
            if step >= initial:
                reference.step(x, y)
            errors[order] = max(errors[order], relative_error(model[0].weight.detach(), reference.W))
    assert errors["step_first"] < EXACT
    assert errors["statistics_first"] > 1e-3


def test_a_resumed_run_keeps_the_papers_order():
    models = [make_net(4, 5, 3), make_net(4, 5, 3, seed=1)]
    settings = {"order": "step_first", "inverses_every": 3, "initial_statistics": 2, "likelihood": "gaussian"}
    optimizers = [FOOF(model, **settings) for model in models]
    for step in range(12):
        if step == 6:
            models[1].load_state_dict(models[0].state_dict())
            optimizers[1].load_state_dict(optimizers[0].state_dict())
        for model, optimizer in list(zip(models, optimizers, strict=True))[: 2 if step >= 6 else 1]:
            optimizer.step(make_closure(model, *make_batch("gaussian", 8, 4, 3, seed=step), "gaussian"))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def variant_direction(variant, *, damping=0.03, lr=1.0):
    """(what FOOF took the parameters by, per layer; the layers' gradients; A and G as stored)."""
    model = make_net(4, 6, 5, 3)
    x, y = make_batch("categorical", 20, 4, 3)
    before = {name: layer_matrix(module) for name, module in linear_layers(model).items()}
    settings = {"lr": lr, "momentum": 0.0, "damping": damping, "fisher": "exact", "likelihood": "categorical"}
    optimizer = FOOF(model, variant=variant, **settings)
    optimizer.accumulate(make_closure(model, x, y, "categorical"))
    optimizer.step()
    return {
        name: (before[name] - layer_matrix(module), layer_gradient(module), *stored_factors(optimizer, name))
        for name, module in linear_layers(model).items()
    }


def input_damping(A, G, damping):
    return damping**0.5 * (A.trace() / len(A) * len(G) / G.trace()) ** 0.5


def test_kfacs_damping_is_kfac_without_its_second_factor():
    for P, V, A, G in variant_direction("kfac_damping").values():
        of_A = input_damping(A, G, 0.03)
        of_G = 0.03 / of_A
        inverse = torch.linalg.inv(A + of_A * torch.eye(len(A), dtype=DTYPE))
        torch.testing.assert_close(P, V @ inverse / of_G, rtol=1e-10, atol=1e-14)


def test_kfacs_norm_is_foofs_direction_at_kfacs_length():
    for P, V, A, G in variant_direction("kfac_norm").values():
        of_A = input_damping(A, G, 0.03)
        foof = V @ torch.linalg.inv(A + of_A * torch.eye(len(A), dtype=DTYPE))
        kfac = torch.linalg.inv(G + 0.03 / of_A * torch.eye(len(G), dtype=DTYPE)) @ foof
        torch.testing.assert_close(P, foof * (kfac.norm() / foof.norm()), rtol=1e-10, atol=1e-14)
        assert not torch.allclose(P, kfac, rtol=1e-3)


@pytest.mark.parametrize("variant", ["kfac_damping", "kfac_norm"])
def test_a_large_damping_makes_a_variant_a_gradient_step_over_it(variant):
    """Then A and G are negligible: P → V/λ, K-FAC's limit."""
    for P, V, _, _ in variant_direction(variant, damping=1e10, lr=1e10).values():
        assert relative_error(P, V) < 1e-3  # the damping of each factor is its root


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("variant", ["foof", "kfac_damping", "kfac_norm"])
def test_a_changed_damping_waits_for_the_next_inversion(variant, thin):
    """Until then P is the dense solve with the old λ, all of it; afterwards with the new one."""
    old, new, every = 1.0, 0.01, 3
    model = make_net(4, 14, 13) if thin else make_net(4, 5, 3)
    d_out = 13 if thin else 3
    settings = {"lr": 1.0, "momentum": 0.0, "fisher": "exact", "likelihood": "gaussian", "factor_decay": 0.0}
    optimizer = FOOF(model, variant=variant, damping=old, inverses_every=every, **settings)
    factors = {}
    for step in range(5):
        optimizer.param_groups[0]["damping"] = old if step == 0 else new
        x, y = make_batch("gaussian", 6, 4, d_out, seed=step)
        before = {name: layer_matrix(module) for name, module in linear_layers(model).items()}
        gradients = torch.autograd.grad(make_closure(model, x, y, "gaussian")()[0], list(model.parameters()))
        optimizer.step(make_closure(model, x, y, "gaussian"))
        if step % every == 0:
            factors = {
                name: [
                    None if side not in own else own[side].clone()
                    for side in ("input_covariance", "gradient_covariance")
                ]
                for name, own in optimizer.state_dict()["extra"]["layers"].items()
            }
        damping = old if step < every else new
        for i, (name, module) in enumerate(linear_layers(model).items()):
            A, G = factors[name]
            V = torch.cat([gradients[2 * i], gradients[2 * i + 1][:, None]], dim=1)
            of_A = damping if variant == "foof" else input_damping(A, G, damping)
            expected = V @ torch.linalg.inv(A + of_A * torch.eye(len(A), dtype=DTYPE))
            if variant == "foof":
                expected *= damping
            elif variant == "kfac_damping":
                expected *= of_A / damping
            else:
                kfac = torch.linalg.inv(G + damping / of_A * torch.eye(len(G), dtype=DTYPE)) @ expected
                expected *= kfac.norm() / expected.norm()
            torch.testing.assert_close(before[name] - layer_matrix(module), expected, rtol=1e-8, atol=1e-12)
