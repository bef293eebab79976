"""K-FAC's updates against dense solves, and against torch's SGD where they must agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.optim import KFAC, OPTIMIZERS
from kftune.optim.preconditioning.damping import make_preconditioners, precondition, split_damping
from tests.optim._contract import build, network, train
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
    unvec,
    vec,
)

EXACT = 1e-10  # relative, float64; observed at most 1e-13


def one_update(model, likelihood="categorical", **hyperparameters):
    """(changes of [W b] divided by −lr, gradients, factors) of one K-FAC update, by layer."""
    x, y = make_batch(likelihood, 12, 4, 3)
    before = {name: layer_matrix(module) for name, module in linear_layers(model).items()}
    optimizer = KFAC(model, likelihood=likelihood, lr=0.5, **({"kl_clip": None} | hyperparameters))
    optimizer.step(make_closure(model, x, y, likelihood))
    changes, gradients, factors = {}, {}, {}
    for name, module in linear_layers(model).items():
        changes[name] = (before[name] - layer_matrix(module)) / 0.5
        gradients[name] = layer_gradient(module)
        factors[name] = stored_factors(optimizer, name)
    return changes, gradients, factors


def eye(n):
    return torch.eye(n, dtype=DTYPE)


def dense_block(A, G, damping, method):
    """The damped block that K-FAC's update must invert, (d_A·d_G)², from its definition."""
    block = torch.kron(A, G)
    if method == "exact":
        return block + damping * eye(len(block))
    if method == "plain":
        return torch.kron(A + damping * eye(len(A)), G + damping * eye(len(G)))
    pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
    cross = pi * damping**0.5 * torch.kron(eye(len(A)), G) + damping**0.5 / pi * torch.kron(A, eye(len(G)))
    return block + damping * eye(len(block)) + cross


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("damping", [1e-3, 1.0])
@pytest.mark.parametrize("method", ["factored", "exact", "plain"])
def test_update_is_the_dense_solve(method, damping, bias):
    changes, gradients, factors = one_update(
        make_net(4, 6, 5, 3, bias=bias), damping=damping, damping_method=method, fisher="exact"
    )
    for name, change in changes.items():
        block = dense_block(*factors[name], damping, method)
        expected = unvec(torch.linalg.solve(block, vec(gradients[name])), change)
        assert relative_error(change, expected) < EXACT


def test_factored_damping_ignores_how_scale_is_split():
    g = torch.Generator().manual_seed(0)
    V = torch.randn(3, 5, generator=g, dtype=DTYPE)
    a, b = torch.randn(9, 5, generator=g, dtype=DTYPE), torch.randn(9, 3, generator=g, dtype=DTYPE)
    A, G = a.T @ a / 9, b.T @ b / 9
    found = [
        precondition(V, make_preconditioners({"l": (c * A, G / c)}, {"l": 0.1}, "factored")["l"], 0.1)
        for c in (1e-4, 1.0, 1e4)
    ]
    assert relative_error(found[0], found[1]) < EXACT
    assert relative_error(found[2], found[1]) < EXACT


def test_a_zero_factor_makes_pi_one():
    on_A, on_G = split_damping(torch.zeros(4, 4), eye(3).float(), 0.25, "factored")
    assert (on_A.item(), on_G.item()) == (0.5, 0.5)


@pytest.mark.parametrize("lr", [0.1, 3.0])
def test_active_kl_clip_gives_kappa(lr):
    """η²ν²Σ⟨P, V⟩ = κ: what is subtracted is ηνP, so Σ⟨ηνP, V⟩²/Σ⟨P, V⟩ = κ with P the unclipped direction."""
    kappa = 1e-4
    x, y = make_batch("categorical", 12, 4, 3)
    steps = {}
    for clip in (None, kappa):
        model = make_net(4, 6, 3)
        before = torch.cat([layer_matrix(m).flatten() for m in linear_layers(model).values()])
        KFAC(model, lr=lr, likelihood="categorical", fisher="exact", kl_clip=clip).step(
            make_closure(model, x, y, "categorical")
        )
        after = torch.cat([layer_matrix(m).flatten() for m in linear_layers(model).values()])
        gradient = torch.cat([layer_gradient(m).flatten() for m in linear_layers(model).values()])
        steps[clip] = before - after
    P = steps[None] / lr
    nu = (steps[kappa].norm() / steps[None].norm()).item()
    assert nu < 0.9
    assert lr**2 * nu**2 * (P @ gradient).item() == pytest.approx(kappa, rel=1e-9)
    assert relative_error(steps[kappa], nu * steps[None]) < EXACT


def test_inactive_kl_clip_changes_nothing():
    clipped, _, _ = one_update(make_net(4, 6, 3), fisher="exact", kl_clip=1e9)
    free, _, _ = one_update(make_net(4, 6, 3), fisher="exact", kl_clip=None)
    for name, change in clipped.items():
        torch.testing.assert_close(change, free[name], rtol=0, atol=0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_with_an_identity_preconditioner_it_is_torch_sgd(nesterov):
    """(F + λI)⁻¹ → I/λ for a large λ."""
    damping, lr = 1e12, 0.2
    settings = {"momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.01}
    identity = {"lr": lr * damping, "damping": damping, "damping_method": "exact", "kl_clip": None}
    ours, theirs = make_net(4, 6, 3), make_net(4, 6, 3)
    optimizer = KFAC(ours, likelihood="gaussian", **identity, **settings)
    reference = torch.optim.SGD(theirs.parameters(), lr=lr, **settings)
    for step in range(5):
        x, y = make_batch("gaussian", 8, 4, 3, seed=step)
        optimizer.step(make_closure(ours, x, y, "gaussian"))
        reference.zero_grad()
        nn.functional.mse_loss(theirs(x), y).backward()
        reference.step()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


def test_preconditioner_is_kept_between_inversions():
    """Between inversions the update is a fixed linear map of the gradient."""
    model = make_net(4, 3, activation=None)
    optimizer = KFAC(
        model, lr=0.1, likelihood="gaussian", fisher="exact", statistics_every=1, inverses_every=3, warmup_updates=0
    )
    maps = []
    for step in range(6):
        x, y = make_batch("gaussian", 8, 4, 3, seed=step)
        optimizer.step(make_closure(model, x, y, "gaussian"))
        maps.append(optimizer.state_dict()["extra"]["layers"]["0"]["input_inverse"].clone())
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[0], maps[2])
    assert not torch.equal(maps[2], maps[3])
    assert torch.equal(maps[3], maps[5])


@pytest.mark.parametrize(
    ("periods", "statistics", "inversions"),
    [
        ({"statistics_every": 3, "inverses_every": 6, "warmup_updates": 0}, {0, 3, 6, 9, 12}, {0, 6, 12}),
        # Periods by update: 1 1 1 2 2 2 3 3 3 4 …, of statistics at most 2, of inversions at most 4.
        (
            {"statistics_every": 2, "inverses_every": 4, "warmup_updates": 3},
            {0, 1, 2, 4, 6, 7, 9, 11},
            {0, 1, 2, 4, 7, 11},
        ),
    ],
)
def test_periods_and_their_warm_up(periods, statistics, inversions):
    model = make_net(4, 3, activation=None)
    optimizer = KFAC(model, lr=0.01, likelihood="gaussian", fisher="exact", **periods)
    gathered, inverted, last = set(), set(), {}
    for step in range(13):
        x, y = make_batch("gaussian", 8, 4, 3, seed=step)
        optimizer.step(make_closure(model, x, y, "gaussian"))
        now = {key: value.clone() for key, value in optimizer.state_dict()["extra"]["layers"]["0"].items()}
        for key, steps in (("input_covariance", gathered), ("input_inverse", inverted)):
            if key not in last or not torch.equal(now[key], last[key]):
                steps.add(step)
        last = now
    assert gathered == statistics
    assert inverted == inversions


class WithOthers(nn.Module):
    """Layers of many kinds: normalised, embedded, shared, frozen, lone."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.inner = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.tied.weight
        self.frozen = nn.Linear(4, 4)
        self.half_frozen = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.frozen.requires_grad_(False)
        self.half_frozen.bias.requires_grad_(False)
        self.double()

    def forward(self, tokens):
        x = self.norm(self.embedding(tokens)) * self.scale
        return self.half_frozen(self.frozen(self.again(torch.tanh(self.tied(torch.tanh(self.inner(x)))))))


def test_what_has_no_curvature_rule_goes_by_sgd_and_says_so():
    torch.manual_seed(0)
    model = WithOthers()
    optimizer = KFAC(model, lr=0.3, momentum=0.0, likelihood="gaussian", fisher="exact", kl_clip=1e-6)
    assert optimizer.coverage() == {
        "scale": "SGD, outside the KL clip",
        "embedding.weight": "SGD, outside the KL clip",
        "norm.weight": "SGD, outside the KL clip",
        "norm.bias": "SGD, outside the KL clip",
        "inner.weight": "Kronecker-factored",
        "inner.bias": "Kronecker-factored",
        "tied.weight": "SGD, outside the KL clip",
        "frozen.weight": "frozen",
        "frozen.bias": "frozen",
        "half_frozen.weight": "Kronecker-factored",
        "half_frozen.bias": "frozen",
    }
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens, y = torch.arange(5).repeat(3), torch.randn(15, 4, dtype=DTYPE)
    optimizer.step(make_closure(model, tokens, y, "gaussian"))
    for name, p in model.named_parameters():
        change = before[name] - p.detach()
        if optimizer.coverage()[name] == "frozen":
            assert not change.any()
        elif optimizer.coverage()[name] == "SGD, outside the KL clip":
            torch.testing.assert_close(change, 0.3 * p.grad)
        else:
            assert not torch.allclose(change, 0.3 * p.grad)


def test_the_share_of_clipped_updates():
    """κ between the largest and the smallest of what four updates would change: it shortens some of them."""
    entry = OPTIMIZERS.get("kfac")
    shares = []
    for kl_clip in (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
        model = network()
        optimizer = build(entry, model, kl_clip=kl_clip)
        train(optimizer, model, 8)
        shares.append(optimizer.readings()["kl_clip_active"])
    assert shares == sorted(shares, reverse=True)
    assert {share * 8 % 1 for share in shares} == {0.0}
    assert any(0 < share < 1 for share in shares)
