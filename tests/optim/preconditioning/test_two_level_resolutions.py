"""The coarse entries of two-level K-FAC between convolutions of unlike resolution, against dense means and solves."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from kftune.optim import TwoLevelKFAC
from kftune.optim.preconditioning.coarse import CoarseSums, Map
from tests.optim._dense import DTYPE, layer_gradient, layer_matrix, make_closure, relative_error
from tests.optim._dense_rows import dense_rows

SUMS = 1e-13  # relative, float64: sums of the same numbers in another order
EXACT = 1e-10  # relative, float64


class Images(nn.Module):
    """Two convolutions and a linear layer; of 8 × 6, 4 × 3 and one position, or of 7 × 5, 4 × 3 and one."""

    def __init__(self, *, nested):
        super().__init__()
        torch.manual_seed(0)
        self.grids = {"a": (8, 6) if nested else (7, 5), "b": (4, 3), "c": (1, 1)}
        self.a = nn.Conv2d(2, 3, 3, padding=1)
        self.b = nn.Conv2d(3, 2, 3, padding=1, stride=2)
        self.c = nn.Linear(24, 3)
        self.double()

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))).flatten(1))


def batch(model, n=9):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, *model.grids["a"], generator=g, dtype=DTYPE), torch.randn(n, 3, generator=g, dtype=DTYPE)


def sampled(maps, grid, common):
    """(…, T) on ``grid`` → (…, T') on ``common``, by torch's own nearest neighbours."""
    images = maps.reshape(-1, 1, *grid)
    return nn.functional.interpolate(images, size=common, mode="nearest").reshape(*maps.shape[:-1], -1)


def papers_coarse_fisher(model, x):
    """Means of 1ᵀA_ij1 over common positions, times sums of 1ᵀG_ij1 over them."""
    rows = dense_rows(model, x, "gaussian")
    found = torch.zeros(3, 3, dtype=DTYPE)
    for (i, p), (j, q) in itertools.product(enumerate(rows), enumerate(rows)):
        common = tuple(map(min, model.grids[p], model.grids[q]))
        alpha, beta = (sampled(rows[name][0].sum(dim=-1), model.grids[name], common) for name in (p, q))
        gamma, delta = (sampled(rows[name][1].sum(dim=-1), model.grids[name], common) for name in (p, q))
        found[i, j] = (alpha * beta).mean() * (gamma * delta).sum() / len(x)
    return found


def build(model, **changes):
    settings = {"lr": 1.0, "momentum": 0.0, "kl_clip": None, "fisher": "exact", "coarse_mean": "common_positions"}
    return TwoLevelKFAC(model, likelihood="gaussian", **settings | changes)


def coarse_fisher(optimizer):
    moments = optimizer.state_dict()["extra"]["coarse_moments"]
    return moments["inputs"]["values"] * moments["gradients"]["values"]


@pytest.mark.parametrize("nested", [True, False])
def test_entries_are_the_papers_means_over_common_positions(nested):
    model = Images(nested=nested)
    x, y = batch(model)
    expected = papers_coarse_fisher(model, x)
    optimizer = build(model)
    for part in zip(x.split((2, 7)), y.split((2, 7)), strict=True):
        optimizer.accumulate(make_closure(model, *part, "gaussian"))
    optimizer.step()
    assert relative_error(coarse_fisher(optimizer), expected) < SUMS


@pytest.mark.parametrize("nested", [True, False])
def test_the_default_differs_by_a_known_factor(nested):
    """T_ij/√(T_i T_j) between layers i and j, and nothing on the diagonal."""
    model = Images(nested=nested)
    x, y = batch(model)
    expected = papers_coarse_fisher(model, x)
    sizes = [torch.tensor(grid, dtype=DTYPE) for grid in model.grids.values()]
    factor = [[torch.minimum(p, q).prod() / (p.prod() * q.prod()).sqrt() for q in sizes] for p in sizes]
    optimizer = build(model, coarse_mean="own_positions")
    optimizer.step(make_closure(model, x, y, "gaussian"))
    assert relative_error(coarse_fisher(optimizer), expected * torch.tensor(factor, dtype=DTYPE)) < SUMS


def test_the_mean_over_common_positions_can_be_indefinite_on_nested_grids():
    """Maps of 16 positions and of one that agree where they meet: the mean over 16 is a sixteenth of the other."""
    g = torch.Generator().manual_seed(0)
    one = torch.randn(5, 1, generator=g, dtype=DTYPE)
    many = torch.cat([one, torch.zeros(5, 15, dtype=DTYPE)], dim=1)
    eigenvalues = {}
    for mean in ("own_positions", "common_positions"):
        sums = CoarseSums(["many", "one"], mean)
        maps = {"many": Map(many, (16,)), "one": Map(one, (1,))}
        sums.add_inputs(maps, 5)
        sums.add_gradients(maps)
        inputs, gradients = sums.moments()
        eigenvalues[mean] = torch.linalg.eigvalsh(inputs.values * gradients.values)
    # With s = mean of one²: [s²/16, s²; s², s²].
    s = (one**2).mean()
    expected = torch.linalg.eigvalsh(s**2 * torch.tensor([[1 / 16, 1.0], [1.0, 1.0]], dtype=DTYPE))
    torch.testing.assert_close(eigenvalues["common_positions"], expected)
    assert eigenvalues["common_positions"][0] < -0.3 * s**2
    assert eigenvalues["own_positions"][0] > -1e-12


@pytest.mark.parametrize("nested", [True, False])
def test_the_correction_is_the_dense_solve(nested):
    """Against the same update without a coarse level."""
    lam, steps = 1e-3, {}
    for coarse in (0.0, 1.0):
        model = Images(nested=nested)
        x, y = batch(model)
        F = papers_coarse_fisher(model, x)
        layers = {name: model.get_submodule(name) for name in "abc"}
        before = {name: layer_matrix(module) for name, module in layers.items()}
        optimizer = build(model, coarse_weight=coarse, damping=lam)
        optimizer.accumulate(make_closure(model, x, y, "gaussian"))
        optimizer.step()
        steps[coarse] = {name: before[name] - layer_matrix(module) for name, module in layers.items()}
        totals = torch.stack([layer_gradient(module).sum() for module in layers.values()])
    c = torch.linalg.solve(F + lam * torch.eye(3, dtype=DTYPE), totals)
    for own, name in zip(c, "abc", strict=True):
        found = steps[1.0][name] - steps[0.0][name]
        assert relative_error(found, own.expand_as(found)) < EXACT
