"""SKFAC's inverses against dense ones, and its updates against K-FAC's without running averages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.optim import KFAC, SKFAC
from kftune.optim.curvature.rows_or_gram import Sample
from kftune.optim.preconditioning.gram_sides import apply, by_rows, make_sides, reduced
from tests.optim._dense import DTYPE, make_closure, relative_error

EXACT = 1e-10  # relative, float64; observed at most 8e-12


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def side_of(sample, damping, *, once):
    damping = torch.tensor(damping, dtype=DTYPE)
    return make_sides(["one"], [sample], [reduced(sample, once=once)], [damping], once=once)[0]


@pytest.mark.product
@pytest.mark.parametrize("damping", [1e-3, 1.0])
@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("n", [1, 5, 12, 19, 20, 50])
def test_an_inverse_by_rows_is_the_dense_inverse(n, once, damping):
    Z, X = random(n, 20), random(7, 20, seed=1)
    dense = torch.linalg.inv(Z.T @ Z + damping * torch.eye(20, dtype=DTYPE))
    for sample in (Sample(Z, is_covariance=False), Sample(Z.T @ Z, is_covariance=True)):
        side = side_of(sample, damping, once=once)
        assert relative_error(apply(X, side), X @ dense) < EXACT
        assert relative_error(apply(3 * Z, side, own=True), 3 * Z @ dense) < EXACT
    assert by_rows(n, 20, once=once) == ("rows" in side_of(Sample(Z, is_covariance=False), damping, once=once))


class Pooled(nn.Module):
    """A classifier of sequences whose second layer is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(9, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.twice(self.twice(self.first(x).tanh()).tanh()).mean(dim=1))


# Sides both larger and smaller than the sample.
NETWORKS = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(16, 30, bias=False), nn.Tanh(), nn.Linear(30, 9), nn.Tanh(), nn.Linear(9, 3)),
        (16,),
    ),
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 2),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        (3, 5, 6),
    ),
    "sequences": lambda: (Pooled(), (4, 9)),
}


def problem(name, n, *, seed=0):
    torch.manual_seed(0)
    model, shape = NETWORKS[name]()
    return model.to(DTYPE), random(n, *shape, seed=seed), random(n, 3, seed=seed + 1).argmax(dim=1)


def train(cls, name, n, *, steps=3, split=None, **settings):
    """Parameters after some updates, each from another batch."""
    model, _, _ = problem(name, n)
    optimizer = cls(model, lr=0.05, likelihood="categorical", **settings)
    for step in range(steps):
        _, x, y = problem(name, n, seed=10 * step)
        if split is None:
            optimizer.step(make_closure(model, x, y, "categorical"))
            continue
        buffer = torch.empty_like(x)  # one memory for all micro-batches
        for inputs, labels in zip(x.split(split), y.split(split), strict=True):
            own = buffer[: len(inputs)].copy_(inputs)
            optimizer.accumulate(make_closure(model, own, labels, "categorical"))
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def worst(found, expected):
    return max(relative_error(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.product
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["exact", "empirical", "mc"])
@pytest.mark.parametrize("n", [2, 11])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_kfac_without_averages(name, n, fisher, sharing, every):
    settings = {"fisher": fisher, "weight_sharing": sharing, "damping": 0.02, "inverses_every": every}
    found = train(SKFAC, name, n, **settings)
    expected = train(KFAC, name, n, factor_decay=0.0, statistics_every=every, **settings)
    assert worst(found, expected) < EXACT


@pytest.mark.parametrize("n", [2, 11])
@pytest.mark.parametrize("name", NETWORKS)
def test_plain_damping_is_kfacs(name, n):
    settings = {"fisher": "exact", "weight_sharing": "reduce", "damping": 0.02, "damping_method": "plain"}
    found = train(SKFAC, name, n, inverses_every=1, **settings)
    expected = train(KFAC, name, n, factor_decay=0.0, statistics_every=1, inverses_every=1, **settings)
    assert worst(found, expected) < EXACT


def test_kfac_with_averages_is_another_thing():
    found = train(SKFAC, "mlp", 11, fisher="exact", inverses_every=1)
    expected = train(KFAC, "mlp", 11, fisher="exact", factor_decay=0.5, statistics_every=1, inverses_every=1)
    assert worst(found, expected) > 1e-3


def test_a_sample_that_is_not_divided_by_its_size_is_another_thing():
    """(XᵀX + λI)⁻¹, the formula without N, against (XᵀX/N + λI)⁻¹."""
    X, V = random(5, 20), random(7, 20, seed=1)
    dense = V @ torch.linalg.inv(X.T @ X / 5 + 0.1 * torch.eye(20, dtype=DTYPE))
    scaled, raw = (side_of(Sample(Z, is_covariance=False), 0.1, once=True) for Z in (X / 5**0.5, X))
    assert relative_error(apply(V, scaled), dense) < EXACT
    assert relative_error(apply(V, raw), dense) > 1e-2


@pytest.mark.product
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("split", [(4, 7), (1, 9, 1)])
@pytest.mark.parametrize("name", NETWORKS)
def test_micro_batches_give_the_update_of_their_union(name, split, sharing, every):
    settings = {"fisher": "exact", "weight_sharing": sharing, "inverses_every": every}
    assert worst(train(SKFAC, name, 11, split=split, **settings), train(SKFAC, name, 11, **settings)) < EXACT


def test_weight_decay_is_preconditioned_too():
    settings = {"fisher": "exact", "inverses_every": 1, "weight_decay": 0.1, "kl_clip": None}
    found = train(SKFAC, "mlp", 2, **settings)
    assert worst(found, train(KFAC, "mlp", 2, factor_decay=0.0, statistics_every=1, **settings)) < EXACT


@pytest.mark.parametrize("every", [1, 3])
def test_a_small_batch_keeps_no_square_matrix_of_a_large_layer(every):
    model, x, y = problem("mlp", 3)
    optimizer = SKFAC(model, lr=0.1, likelihood="categorical", inverses_every=every)
    optimizer.step(make_closure(model, x, y, "categorical"))
    kept = optimizer.state_dict()["extra"]["layers"]["0"]
    assert max(min(tensor.shape, default=1) for tensor in kept.values()) == 3
    assert all(p.grad is None for p in model[0].parameters())


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.other = nn.Linear(9, 8), nn.Linear(8, 7), nn.Linear(8, 7)

    def forward(self, x):
        hidden = self.body(x).tanh()
        return self.head(hidden), self.other(hidden)


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_a_layer_that_the_output_leaves_out_keeps_its_older_rows(fisher):
    """The gradient of such a layer is not made of the rows that its inverse is made of."""
    found = []
    for accumulate in (False, True):
        torch.manual_seed(0)
        model = TwoHeads().to(DTYPE)
        optimizer = SKFAC(model, lr=0.1, likelihood="categorical", fisher=fisher, inverses_every=1)
        for step, both in enumerate((True, False)):
            x, y = random(2, 9, seed=step), torch.tensor([0, 6])

            def closure(model=model, x=x, y=y, both=both):
                first, second = model(x)
                loss = nn.functional.cross_entropy(first, y) + nn.functional.cross_entropy(second, y)
                return loss, first + second if both else first

            if accumulate:
                optimizer.accumulate(closure)
                optimizer.step()
            else:
                optimizer.step(closure)
        found.append([p.detach() for p in model.parameters()])
    assert worst(*found) < EXACT


def test_dead_inputs_and_outputs():
    """Covariances of zeros: nothing to divide by but the damping."""
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    nn.init.constant_(model[0].bias, -100.0)
    optimizer = SKFAC(model, lr=0.1, likelihood="categorical", fisher="exact", inverses_every=1)
    for _ in range(3):
        optimizer.step(make_closure(model, torch.zeros(4, 8, dtype=DTYPE), torch.arange(4) % 3, "categorical"))
    assert all(torch.isfinite(p).all() for p in model.parameters())
