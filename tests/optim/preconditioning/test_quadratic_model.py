"""The quadratic model and its Fisher products against the dense GGN over all parameters."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from kftune.optim.preconditioning.adaptive.quadratic_model import (
    QuadraticModel,
    combine,
    fisher_products,
    inner_products,
    jacobian_products,
)
from tests.optim._dense import DTYPE, make_batch, make_loss, make_net, relative_error
from tests.optim._dense_objective import as_direction, dense_ggn, flatten, objective_gradient

EXACT = 1e-10  # relative, float64; observed at most 1e-15


class Convolutional(nn.Module):
    """Strides, groups, batch normalisation, an activation in place, pooling."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, groups=2, bias=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu_(self.norm(self.first(x))), 2, stride=1)
        return self.last(torch.tanh(self.second(x)).mean(dim=(2, 3)))


class Attentive(nn.Module):
    """Embedding, layer normalisation, attention in its unfused form; an output for every position."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Linear(4, 12)
        self.last = nn.Linear(4, 3)

    def forward(self, tokens):
        q, k, v = self.mix(self.norm(self.embedding(tokens))).chunk(3, dim=-1)
        weights = torch.softmax(q @ k.transpose(1, 2), dim=-1)
        return self.last(weights @ v)


def sequence_cross_entropy(output, target):
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def case(name, likelihood):
    """(model, x, y, loss) of a small problem."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    loss = make_loss(likelihood)
    if name == "mlp":
        return make_net(4, 5, 3), *make_batch(likelihood, 7, 4, 3), loss
    if name == "convolutional":
        x = torch.randn(6, 2, 9, 9, generator=g, dtype=DTYPE)
        return Convolutional().double(), x, make_batch(likelihood, 6, 1, 3)[1], loss
    model, tokens = Attentive().double(), torch.randint(5, (4, 6), generator=g)
    if likelihood == "categorical":
        return model, tokens, torch.randint(3, (4, 6), generator=g), sequence_cross_entropy
    y = torch.randn(4, 6, 3, generator=g, dtype=DTYPE)
    return model, tokens, (y > 0).to(DTYPE) if likelihood == "bernoulli" else y, loss


def random_directions(model, k, seed=3):
    n = sum(p.numel() for p in model.parameters())
    return torch.randn(k, n, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
@pytest.mark.parametrize("name", ["mlp", "convolutional", "attentive"])
def test_fisher_products_are_the_dense_ggn(name, likelihood):
    model, x, y, loss = case(name, likelihood)
    D = random_directions(model, 3)
    expected = D @ dense_ggn(model, x, y, loss) @ D.T
    found = fisher_products(model(x), [as_direction(model, d) for d in D], likelihood) / len(x)
    assert relative_error(found, expected) < EXACT


def test_an_output_without_a_second_dimension():
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double()
    x, y = make_batch("bernoulli", 7, 4, 1)
    D = random_directions(model, 2)
    expected = D @ dense_ggn(model, x, y[:, 0], make_loss("bernoulli")) @ D.T
    found = fisher_products(model(x), [as_direction(model, d) for d in D], "bernoulli") / len(x)
    assert relative_error(found, expected) < EXACT


def test_jacobian_products_of_partial_directions():
    model, x, _, _ = case("mlp", "gaussian")
    weight, unused = model[2].weight, nn.Parameter(torch.zeros(3, dtype=DTYPE))
    d = torch.randn(weight.shape, dtype=DTYPE)
    one, none = jacobian_products(model(x), [{weight: d}, {unused: torch.ones(3, dtype=DTYPE)}])
    torch.testing.assert_close(one, torch.tanh(model[0](x)) @ d.T)
    assert not none.any()


def test_detached_paths_do_not_count():
    layer = nn.Linear(4, 3).double()
    x = torch.randn(5, 4, dtype=DTYPE)
    d = {layer.weight: torch.randn(3, 4, dtype=DTYPE)}
    (found,) = jacobian_products(layer(x) + 5 * layer(x).detach(), [d])
    torch.testing.assert_close(found, x @ d[layer.weight].T)


def dense_model(likelihood="categorical", damping=0.3, weight_decay=0.1, k=2):
    """(the model on k random directions, the directions, C, ∇h), by dense algebra."""
    model, x, y, loss = case("mlp", likelihood)
    F, g = dense_ggn(model, x, y, loss), objective_gradient(model, x, y, loss, weight_decay)
    C = F + (damping + weight_decay) * torch.eye(len(F), dtype=DTYPE)
    return F, C, g, random_directions(model, k), (damping, weight_decay)


def on(D, F, g, dampings, resolution=1e-14):
    return QuadraticModel(D @ F @ D.T, D @ D.T, D @ g, *dampings, resolution)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_the_exact_natural_gradient_is_taken_as_it_is(likelihood):
    """Δ = −C⁻¹∇h minimises M everywhere, so (α, μ) = (1, 0) whatever δ₀, and M(Δ) − M(0) = ½∇hᵀΔ."""
    F, C, g, (_, previous), dampings = dense_model(likelihood)
    natural = -torch.linalg.solve(C, g)
    model = on(torch.stack([natural, previous]), F, g, dampings)
    c = model.minimizer()
    torch.testing.assert_close(c, torch.tensor([1.0, 0.0], dtype=DTYPE), rtol=EXACT, atol=EXACT)
    assert model.change(c) == pytest.approx(0.5 * (g @ natural).item(), rel=EXACT)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_minimizer_is_stationary_and_changes_half_the_slope(k):
    F, C, g, D, dampings = dense_model(k=k)
    model = on(D, F, g, dampings)
    c = model.minimizer()
    delta = c @ D
    assert ((C @ delta + g) @ D.T).norm() < EXACT * (g @ D.T).norm()
    assert model.change(c) == pytest.approx(0.5 * (g @ delta).item(), rel=EXACT)
    assert model.change(c) == pytest.approx((0.5 * delta @ C @ delta + g @ delta).item(), rel=EXACT)
    undamped = model.change(c, damped=False)
    assert model.change(c) - undamped == pytest.approx(0.5 * dampings[0] * (delta @ delta).item(), rel=EXACT)


def test_dependent_and_zero_directions():
    F, _, g, (d,), dampings = dense_model(k=1)
    alone = on(d[None], F, g, dampings).minimizer() * d
    for others in ([3 * d], [0 * d], [0 * d, -d, 1e6 * d]):
        D = torch.stack([d, *others])
        assert relative_error(on(D, F, g, dampings).minimizer() @ D, alone) < EXACT
    nothing = on(torch.zeros(2, len(d), dtype=DTYPE), F, g, dampings)
    assert not nothing.minimizer().any()
    assert nothing.change(nothing.minimizer()) == 0


def test_a_part_of_the_directions():
    F, _, g, D, dampings = dense_model(k=3)
    part, expected = on(D, F, g, dampings).among([2, 0]), on(D[[2, 0]], F, g, dampings)
    torch.testing.assert_close(part.minimizer(), expected.minimizer())


def test_sums_and_products_over_parameters():
    model, x, y, loss = case("mlp", "gaussian")
    g, D = objective_gradient(model, x, y, loss, 0.0), random_directions(model, 2)
    directions = [as_direction(model, d) for d in D]
    missing = model[0].bias
    del directions[1][missing]
    D[1] = flatten([directions[1].get(p, torch.zeros_like(p)) for p in model.parameters()])
    rows = torch.stack([g, *D])
    assert relative_error(inner_products(as_direction(model, g), directions), rows @ rows.T) < EXACT
    for order in itertools.permutations([0, 1]):
        found = combine([directions[i] for i in order], [[2.0, -3.0][i] for i in order])
        assert relative_error(flatten(found[p] for p in model.parameters()), 2 * D[0] - 3 * D[1]) < EXACT
    assert relative_error(flatten(directions[0].values()), D[0]) == 0


def test_long_sums_keep_the_precision_of_float32():
    p = nn.Parameter(torch.zeros(3_000_001))
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, p.numel(), generator=g).sub_(0.2)
    rows = torch.stack([a, b]).double()
    assert relative_error(inner_products({p: a}, [{p: b}]), rows @ rows.T) < 1e-6  # observed 3e-8
