"""Convolutions, groups, sequences and weight sharing: factors against dense curvature and against plain sums."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.optim import FOOF, KFAC
from kftune.optim.curvature.layers import find_layers, split
from tests.optim._dense import (
    DTYPE,
    ggn_block,
    layer_gradient,
    linear_layers,
    make_batch,
    make_closure,
    make_net,
    relative_error,
    stored_factors,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, on even kernels

EXACT = 1e-10  # relative, float64; observed at most 2e-15

GEOMETRIES = {
    "plain": {},
    "stride": {"stride": 2},
    "padding": {"padding": 1},
    "uneven": {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0), "dilation": (1, 2)},
    "same": {"padding": "same", "kernel_size": (2, 3)},
    "valid": {"padding": "valid"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate"},
}


class MeanOverPositions(nn.Module):
    def forward(self, x):
        return x.flatten(2).mean(dim=2)


def images(n=4, channels=2, side=5, *, seed=0):
    return torch.randn(n, channels, side, side + 1, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def targets(n=4, d_out=3, *, seed=0):
    return torch.randn(n, d_out, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def gather(model, x, y, likelihood="gaussian", **hyperparameters):
    optimizer = KFAC(model, lr=0.0, likelihood=likelihood, **{"fisher": "exact", **hyperparameters})
    optimizer.step(make_closure(model, x, y, likelihood))
    return optimizer


def conv_net(bias=True, **geometry):
    torch.manual_seed(0)
    first = nn.Conv2d(2, 3, **{"kernel_size": 3, **geometry}, bias=bias)
    return nn.Sequential(first, nn.Tanh(), MeanOverPositions(), nn.Linear(3, 3)).to(DTYPE)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("bias", [True, False])
def test_rows_times_weight_are_the_convolutions_output(geometry, bias):
    model = conv_net(bias=bias, **geometry)
    x = images()
    module, (layer,) = find_layers(model)["0"]
    rows = layer.homogeneous_rows(x)
    s = module(x)
    matrix = layer.join({p: p.detach() for p in layer.parameters})
    torch.testing.assert_close(rows @ matrix.T, layer.output_rows(s), rtol=EXACT, atol=1e-12)
    assert layer.positions(s) == s.shape[2:]
    assert layer.n_rows(s) == rows.shape[0] * rows.shape[1]


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_expanded_factors_of_a_convolution_are_sums_over_positions(geometry):
    model = conv_net(**geometry)
    x, y = images(), targets()
    A, G = stored_factors(gather(model, x, y), "0")
    s = model[0](x)
    n, positions = len(x), s[0, 0].numel()
    by_position = torch.stack([layer_row(model[0], x, p) for p in range(positions)])
    torch.testing.assert_close(A, torch.einsum("pni,pnj->ij", by_position, by_position) / (n * positions))
    expected = torch.zeros(3, 3, dtype=DTYPE)
    output = model[1:](s)
    for o in range(3):
        (g,) = torch.autograd.grad(output[:, o].sum() * (2 / 3) ** 0.5, s, retain_graph=True)
        expected += torch.einsum("nihw,njhw->ij", g, g) / n
    torch.testing.assert_close(G, expected)


def layer_row(module, x, position):
    """ā at one output position: what the output there depends on, found by differentiation."""

    def output(weight, bias):
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, (x,))[:, 0].flatten(1)[:, position]

    by_weight, by_bias = torch.func.jacrev(output, argnums=(0, 1))(module.weight, module.bias)
    return torch.cat([by_weight[:, 0].flatten(1), by_bias[:, :1]], dim=1).detach()


@pytest.mark.parametrize("window", [{"stride": 2}, {"padding": 1}], ids=["patches", "correlations"])
def test_large_images_are_summed_over_all_their_patches(window):
    """More than are made at a time; and by correlations, none."""
    model = conv_net(**window)
    x = torch.randn(40, 2, 50, 61, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    A, _ = stored_factors(gather(model, x, targets(40)), "0")
    rows = nn.functional.unfold(x, 3, **window).transpose(1, 2).flatten(0, 1)
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=DTYPE)], dim=1)
    torch.testing.assert_close(A, rows.T @ rows / len(rows))


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_one_example_and_one_position_is_the_ggn_block(likelihood):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, (5, 6)), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)).to(DTYPE)
    x, (_, y) = images(1), make_batch(likelihood, 1, 4, 3)
    for sharing in ("expand", "reduce"):
        A, G = stored_factors(gather(model, x, y, likelihood, weight_sharing=sharing), "0")
        assert relative_error(torch.kron(A, G), ggn_block(model, "0", x, y, likelihood)) < EXACT


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_reduce_is_exact_for_a_linear_convolution_under_mean_pooling(geometry):
    torch.manual_seed(0)
    first = nn.Conv2d(2, 3, **{"kernel_size": 3, **geometry})
    model = nn.Sequential(first, MeanOverPositions(), nn.Linear(3, 3)).to(DTYPE)
    x, y = images(), targets()
    expected = ggn_block(model, "0", x, y, "gaussian")
    A, G = stored_factors(gather(model, x, y, weight_sharing="reduce"), "0")
    assert relative_error(torch.kron(A, G), expected) < EXACT
    A, G = stored_factors(gather(model, x, y, weight_sharing="expand"), "0")
    assert relative_error(torch.kron(A, G), expected) > 0.1


def test_reduce_is_exact_for_deep_linear_sequences_under_mean_pooling():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.c(self.b(self.a(x)).mean(dim=1))

    torch.manual_seed(0)
    model = Pooled().to(DTYPE)
    x, y = torch.randn(6, 7, 4, dtype=DTYPE), targets(6)
    for sharing in ("expand", "reduce"):
        optimizer = gather(model, x, y, weight_sharing=sharing)
        for name in ("a", "b"):
            A, G = stored_factors(optimizer, name)
            error = relative_error(torch.kron(A, G), ggn_block(model, name, x, y, "gaussian"))
            assert error < EXACT if sharing == "reduce" else error > 0.1


def test_pixelwise_linear_convolutions_with_a_loss_per_pixel_are_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1)).to(DTYPE)
    x, y = images(), torch.randn(4, 3, 5, 6, dtype=DTYPE)
    optimizer = gather(model, x, y)
    for name in ("0", "1"):
        A, G = stored_factors(optimizer, name)
        assert relative_error(torch.kron(A, G), ggn_block(model, name, x, y, "gaussian")) < EXACT


@pytest.mark.product
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("window", [{"padding": 1}, {"stride": 2}], ids=["correlations", "patches"])
def test_groups_are_convolutions_of_their_own(bias, fisher, sharing, window):
    """A grouped convolution equals ungrouped ones side by side, factors and updates."""

    class SideBySide(nn.Module):
        def __init__(self, grouped):
            super().__init__()
            self.parts = nn.ModuleList(nn.Conv2d(2, 3, 3, **window, bias=bias) for _ in range(2))
            for j, part in enumerate(self.parts):
                part.weight.data = grouped.weight.data[3 * j : 3 * j + 3].clone()
                if bias:
                    part.bias.data = grouped.bias.data[3 * j : 3 * j + 3].clone()

        def forward(self, x):
            return torch.cat([part(half) for part, half in zip(self.parts, x.split(2, dim=1), strict=True)], dim=1)

    torch.manual_seed(0)
    grouped = nn.Sequential(nn.Conv2d(4, 6, 3, **window, groups=2, bias=bias), MeanOverPositions()).to(DTYPE)
    apart = nn.Sequential(SideBySide(grouped[0]), MeanOverPositions()).to(DTYPE)
    x, y = images(channels=4), targets(d_out=6)
    settings = {"lr": 0.1, "fisher": fisher, "weight_sharing": sharing, "likelihood": "gaussian"}
    optimizers = [KFAC(model, **settings) for model in (grouped, apart)]
    for _ in range(3):
        for model, optimizer in zip((grouped, apart), optimizers, strict=True):
            optimizer.step(make_closure(model, x, y, "gaussian"))
    for j in (0, 1):
        pairs = zip(
            stored_factors(optimizers[0], f"0[{j}]"), stored_factors(optimizers[1], f"0.parts.{j}"), strict=True
        )
        for found, expected in pairs:
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grouped[0].weight, torch.cat([part.weight for part in apart[0].parts]))
    assert set(optimizers[0].coverage().values()) == {"Kronecker-factored"}


def test_split_is_the_inverse_of_join():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 2, 3, bias=False), nn.Linear(3, 5)).to(DTYPE)
    layers = [layer for _, own in find_layers(model).values() for layer in own]
    assert [layer.name for layer in layers] == ["0[0]", "0[1]", "1", "2"]
    values = {p: torch.randn_like(p) for p in model.parameters()}
    joined = {layer.name: layer.join(values) for layer in layers}
    assert all(joined[layer.name].shape == (layer.d_G, layer.d_A) for layer in layers)
    for p, found in split(layers, joined).items():
        assert torch.equal(found, values[p])


def test_what_has_no_rule_of_its_own_is_said():
    model = nn.Sequential(
        nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(3, 3, 1), nn.Bilinear(4, 4, 2)
    )
    coverage = KFAC(model, likelihood="gaussian").coverage()
    assert {name for name, rule in coverage.items() if rule == "Kronecker-factored"} == {"1.weight", "1.bias"}
    assert {rule for name, rule in coverage.items() if not name.startswith("1.")} == {"SGD, outside the KL clip"}


def test_a_layer_that_is_bypassed_is_reported():
    class Bypassing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return nn.functional.linear(self.a(x), self.b.weight, self.b.bias)

    model = Bypassing().to(DTYPE)
    optimizer = KFAC(model, likelihood="gaussian")
    x, y = make_batch("gaussian", 8, 4, 3)
    with pytest.warns(UserWarning, match=r"layers b have a gradient but were not seen in the forward pass"):
        optimizer.step(make_closure(model, x, y, "gaussian"))
    optimizer.step(make_closure(model, x, y, "gaussian"))


@pytest.mark.parametrize("flattened", [False, True])
def test_flattened_sequences_are_sequences(flattened):
    """Examples and positions in one dimension give the same factors as in two."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            if not flattened:
                return self.b(self.a(x).tanh().mean(dim=1))
            return self.b(self.a(x.flatten(0, 1)).tanh().unflatten(0, x.shape[:2]).mean(dim=1))

    torch.manual_seed(0)
    model = Net().to(DTYPE)
    x, y = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(1), dtype=DTYPE), targets(6)
    A, G = stored_factors(gather(model, x, y), "a")
    rows = torch.cat([x.flatten(0, 1), torch.ones(42, 1, dtype=DTYPE)], dim=1)
    torch.testing.assert_close(A, rows.T @ rows / 42)
    s = model.a(x)
    root = (2 / 3) ** 0.5
    g = [
        torch.autograd.grad(model.b(s.tanh().mean(dim=1))[:, o].sum() * root, s, retain_graph=True)[0] for o in range(3)
    ]
    torch.testing.assert_close(G, sum(torch.einsum("nti,ntj->ij", v, v) for v in g) / 6)


SMALL_BATCHES = {
    "clip": {"kl_clip": 1e-4},
    "no clip": {"kl_clip": None, "lr": 1e-3},
    "once": {"inverses_every": 1, "kl_clip": 1e-4},
}


@pytest.mark.product
@pytest.mark.parametrize("n", [1, 2, 7, 150])
@pytest.mark.parametrize("settings", SMALL_BATCHES.values(), ids=SMALL_BATCHES)
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("method", ["factored", "plain"])
def test_thin_factors_give_the_update_of_the_matrix(n, settings, fisher, method):
    """``accumulate`` then ``step`` uses gradients, ``step(closure)`` of a small batch their factors."""
    models = [make_net(200, 150, 3, seed=0) for _ in range(2)]
    schedule = {"statistics_every": 1, "inverses_every": 2, "warmup_updates": 0} | settings
    optimizers = [
        KFAC(model, likelihood="categorical", fisher=fisher, damping_method=method, **schedule) for model in models
    ]
    for step in range(4):
        x, y = make_batch("categorical", n, 200, 3, seed=step)
        found = optimizers[0].step(make_closure(models[0], x, y, "categorical"))
        optimizers[1].accumulate(make_closure(models[1], x, y, "categorical"))
        assert all(p.grad is not None for p in models[1].parameters())
        torch.testing.assert_close(optimizers[1].step(), found, rtol=1e-9, atol=0)
        if n < 100:
            assert models[0][0].weight.grad is None
    for found, expected in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("n", [2, 100])
def test_thin_factors_give_foofs_update(n):
    models = [make_net(20, 30, 3, seed=0) for _ in range(2)]
    optimizers = [FOOF(model, inverses_every=2) for model in models]
    for step in range(4):
        x, y = make_batch("categorical", n, 20, 3, seed=step)
        optimizers[0].step(make_closure(models[0], x, y, "categorical"))
        optimizers[1].accumulate(make_closure(models[1], x, y, "categorical"))
        optimizers[1].step()
        assert (models[0][0].weight.grad is None) == (n == 2)
    for found, expected in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_weight_decay_needs_the_matrix_and_gets_it():
    model = make_net(40, 30, 3)
    x, y = make_batch("categorical", 2, 40, 3)
    KFAC(model, likelihood="categorical", weight_decay=0.1).step(make_closure(model, x, y, "categorical"))
    assert all(layer_gradient(module) is not None for module in linear_layers(model).values())
