"""K-FAC's factors against dense curvature, where mathematics says that they are equal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.optim import KFAC
from tests.optim._dense import (
    DTYPE,
    empirical_fisher_block,
    ggn_block,
    linear_layers,
    make_batch,
    make_closure,
    make_net,
    relative_error,
    stored_factors,
)

LIKELIHOODS = ["categorical", "gaussian", "bernoulli"]
EXACT = 1e-10  # relative, float64; observed at most 1e-15


def gather(model, x, y, likelihood, **hyperparameters):
    """A K-FAC optimizer that has seen the batch once and left the parameters as they were."""
    optimizer = KFAC(model, lr=0.0, likelihood=likelihood, **hyperparameters)
    optimizer.step(make_closure(model, x, y, likelihood))
    return optimizer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_example_exact_fisher_is_the_ggn_block(likelihood, bias):
    model = make_net(4, 5, 3, 3, bias=bias)
    x, y = make_batch(likelihood, 1, 4, 3)
    optimizer = gather(model, x, y, likelihood, fisher="exact")
    for name in linear_layers(model):
        A, G = stored_factors(optimizer, name)
        assert relative_error(torch.kron(A, G), ggn_block(model, name, x, y, likelihood)) < EXACT


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_example_empirical_is_the_empirical_fisher_block(likelihood):
    model = make_net(4, 5, 3)
    x, y = make_batch(likelihood, 1, 4, 3)
    optimizer = gather(model, x, y, likelihood, fisher="empirical")
    for name in linear_layers(model):
        A, G = stored_factors(optimizer, name)
        assert relative_error(torch.kron(A, G), empirical_fisher_block(model, name, x, y, likelihood)) < EXACT


@pytest.mark.parametrize("bias", [True, False])
def test_deep_linear_network_with_squared_error_is_exact_for_any_batch(bias):
    model = make_net(4, 6, 5, 3, activation=None, bias=bias)
    x, y = make_batch("gaussian", 9, 4, 3)
    optimizer = gather(model, x, y, "gaussian", fisher="exact")
    for name in linear_layers(model):
        A, G = stored_factors(optimizer, name)
        assert relative_error(torch.kron(A, G), ggn_block(model, name, x, y, "gaussian")) < EXACT


def test_sequences_of_a_deep_linear_network_are_exact():
    model = make_net(4, 5, 3, activation=None)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 7, 4, generator=g, dtype=DTYPE)
    y = torch.randn(6, 7, 3, generator=g, dtype=DTYPE)
    optimizer = gather(model, x, y, "gaussian", fisher="exact")
    for name in linear_layers(model):
        A, G = stored_factors(optimizer, name)
        assert relative_error(torch.kron(A, G), ggn_block(model, name, x, y, "gaussian")) < EXACT


def test_deep_linear_network_with_cross_entropy_is_not_exact():
    model = make_net(4, 6, 3, activation=None)
    x, y = make_batch("categorical", 9, 4, 3)
    optimizer = gather(model, x, y, "categorical", fisher="exact")
    A, G = stored_factors(optimizer, "0")
    assert relative_error(torch.kron(A, G), ggn_block(model, "0", x, y, "categorical")) > 1e-4


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("shape", [(3,), (4, 3)], ids=["vector", "sequence"])
def test_drawn_labels_converge_to_the_exact_fisher(likelihood, shape):
    torch.manual_seed(0)
    model = make_net(2, 4, 3)
    x = torch.randn(2, *shape[:-1], 2, dtype=DTYPE)
    n = 20_000  # one draw for each of many copies; a standard error of 0.005 in units of the largest entry
    copies = x.repeat(n, *[1] * len(shape))
    y = model(copies).detach()
    if likelihood == "categorical":
        y = y.softmax(dim=-1)

    def closure():
        output = model(copies)
        return nn.functional.mse_loss(output, y), output  # only the output matters to drawn labels

    drawn = KFAC(model, lr=0.0, likelihood=likelihood, fisher="mc")
    drawn.step(closure)
    exact = KFAC(model, lr=0.0, likelihood=likelihood, fisher="exact")
    exact.step(closure)
    for name in linear_layers(model):
        found, expected = stored_factors(drawn, name)[1], stored_factors(exact, name)[1]
        scale = expected.abs().max()
        torch.testing.assert_close(found / scale, expected / scale, rtol=0.1, atol=0.015)


def test_permuted_labels_are_gradients_towards_other_examples_predictions():
    model = make_net(3, 2, activation=None)
    x, y = make_batch("gaussian", 2, 3, 2)
    f = model(x).detach()
    seen = set()
    for seed in range(20):
        optimizer = gather(model, x, y, "gaussian", fisher="permuted", seed=seed)
        G = stored_factors(optimizer, "0")[1]
        swapped = torch.stack([f[0] - f[1], f[1] - f[0]])  # times 2/O with O = 2
        expected = {"same": torch.zeros(2, 2, dtype=DTYPE), "swapped": swapped.T @ swapped / 2}
        matching = [name for name, value in expected.items() if torch.allclose(G, value)]
        assert len(matching) == 1
        seen.update(matching)
    assert seen == {"same", "swapped"}


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_permuted_labels_keep_the_counts_of_the_predictions(likelihood):
    model = make_net(3, 2, activation=None)
    x, y = make_batch(likelihood, 40, 3, 2)
    optimizer = gather(model, x, y, likelihood, fisher="permuted")
    G = stored_factors(optimizer, "0")[1]
    assert torch.isfinite(G).all()
    assert G.trace() > 0


@pytest.mark.parametrize("fisher", ["mc", "exact", "permuted", "empirical"])
def test_a_statistics_pass_leaves_the_gradient_alone(fisher):
    model = make_net(4, 5, 3)
    x, y = make_batch("categorical", 8, 4, 3)
    nn.functional.cross_entropy(model(x), y).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    gather(model, x, y, "categorical", fisher=fisher, momentum=0.0)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_in_place_activations_change_nothing(fisher):
    x, y = make_batch("categorical", 8, 4, 3)
    factors = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=inplace), nn.Linear(6, 3)).double()
        factors.append(stored_factors(gather(model, x, y, "categorical", fisher=fisher), "0"))
    for found, expected in zip(*factors, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_checkpointed_layers_are_counted_once(fisher):
    x, y = make_batch("categorical", 8, 4, 3)
    model = make_net(4, 6, 3)
    plain = gather(model, x, y, "categorical", fisher=fisher)
    saving = KFAC(model, lr=0.0, likelihood="categorical", fisher=fisher)

    def closure():
        output = model[2](torch.utils.checkpoint.checkpoint(model[:2], x, use_reentrant=False))
        return nn.functional.cross_entropy(output, y), output

    saving.step(closure)
    for name in linear_layers(model):
        for found, expected in zip(stored_factors(saving, name), stored_factors(plain, name), strict=True):
            torch.testing.assert_close(found, expected)


def test_a_module_used_twice_counts_every_use():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3, dtype=DTYPE)

        def forward(self, x):
            return self.inner(self.inner(x))

    torch.manual_seed(0)
    model = Twice()
    x, y = make_batch("gaussian", 5, 3, 3)
    optimizer = gather(model, x, y, "gaussian", fisher="exact")
    A, G = stored_factors(optimizer, "inner")
    W, ones = model.inner.weight.detach(), torch.ones(5, 1, dtype=DTYPE)
    first = torch.cat([x, ones], dim=1)
    second = torch.cat([model.inner(x).detach(), ones], dim=1)
    torch.testing.assert_close(A, (first.T @ first + second.T @ second) / 10)
    H = torch.eye(3, dtype=DTYPE) * 2 / 3
    torch.testing.assert_close(G, H + W.T @ H @ W)


def test_nothing_is_captured_in_eval_mode_or_without_gradients():
    model = make_net(4, 5, 3)
    x, y = make_batch("gaussian", 6, 4, 3)
    optimizer = KFAC(model, lr=0.0, likelihood="gaussian", fisher="exact")

    def closure():
        with torch.no_grad():
            model(1e6 * x)
        model.eval()
        model(1e6 * x)
        model.train()
        output = model(x)
        return nn.functional.mse_loss(output, y), output

    optimizer.step(closure)
    model(1e6 * x)
    clean = gather(model, x, y, "gaussian", fisher="exact")
    for name in linear_layers(model):
        torch.testing.assert_close(stored_factors(optimizer, name)[0], stored_factors(clean, name)[0])


def test_a_model_in_eval_mode_at_a_statistics_update_is_an_error():
    model = make_net(4, 3).eval()
    x, y = make_batch("gaussian", 6, 4, 3)
    with pytest.raises(RuntimeError, match=r"saw no layer.*model\.train\(\)"):
        KFAC(model, likelihood="gaussian").step(make_closure(model, x, y, "gaussian"))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.95])
def test_running_averages_weigh_statistics_updates(decay):
    model = make_net(4, 3)
    optimizer = KFAC(
        model,
        lr=0.0,
        likelihood="gaussian",
        fisher="exact",
        factor_decay=decay,
        statistics_every=2,
        inverses_every=2,
        warmup_updates=0,
    )
    expected = torch.zeros(5, 5, dtype=DTYPE)
    for step in range(7):
        x, y = make_batch("gaussian", 6, 4, 3, seed=step)
        optimizer.step(make_closure(model, x, y, "gaussian"))
        if step % 2 == 0:
            k = step // 2 + 1
            weight = min(1 - 1 / k, decay)
            a = torch.cat([x, torch.ones(6, 1, dtype=DTYPE)], dim=1)
            expected = weight * expected + (1 - weight) * a.T @ a / 6
    torch.testing.assert_close(stored_factors(optimizer, "0")[0], expected)
