"""When every registered optimizer inverts that has a choice of warm-ups."""

from __future__ import annotations

import inspect

import pytest
import torch

from kftune.optim import KFAC, OPTIMIZERS
from tests.optim._contract import build, network, train
from tests.optim._dense import (
    layer_gradient,
    layer_matrix,
    linear_layers,
    make_batch,
    make_closure,
    relative_error,
)
from tests.optim._dense_rows import dense_rows

ENTRIES = [entry for entry in OPTIMIZERS if "warmup_schedule" in inspect.signature(entry.cls).parameters]
every = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)

AVERAGED = ("input_covariance", "gradient_covariance", "input_cross", "gradient_cross", "scalings")


def inverted_at(entry, n, **settings):
    """The numbers, from 1, of the updates that renewed what layers are preconditioned with."""
    arguments = inspect.signature(entry.cls).parameters
    model = network()
    optimizer = build(entry, model, **{k: v for k, v in settings.items() if k in arguments})
    found, before = [], {}
    for k in range(1, n + 1):
        train(optimizer, model, 1, first=k)
        layers = optimizer.state_dict()["extra"]["layers"]
        now = {(name, key): t.clone() for name, own in layers.items() for key, t in own.items() if key not in AVERAGED}
        if now.keys() != before.keys() or any(not torch.equal(t, before[key]) for key, t in now.items()):
            found.append(k)
        before = now
    return found


@every
def test_the_papers_schedule_is_the_first_updates_and_then_the_multiples(entry):
    settings = {"statistics_every": 1, "inverses_every": 6, "scalings_every": 1}
    paper = inverted_at(entry, 19, warmup_schedule="first_updates", warmup_updates=3, **settings)
    assert paper == [1, 2, 3, 6, 12, 18]
    assert inverted_at(entry, 19, warmup_schedule="first_updates", warmup_updates=0, **settings) == [1, 6, 12, 18]


@every
def test_the_default_schedule_lets_the_periods_grow(entry):
    """The update after k others comes 1 + k // 3 after the one before, at most 6."""
    settings = {"statistics_every": 1, "inverses_every": 6, "scalings_every": 1, "warmup_updates": 3}
    expected, last = [1], 0
    for k in range(1, 30):
        if k - last >= min(6, 1 + k // 3):
            expected.append(k + 1)
            last = k
    assert inverted_at(entry, 30, **settings) == expected


def test_between_inversions_updates_are_solves_with_the_old_factors():
    """Dense K-FAC with every = 4, in the paper's schedule."""
    lam, averages = 0.1, {}
    model = network()
    settings = {"statistics_every": 1, "inverses_every": 4, "warmup_schedule": "first_updates", "warmup_updates": 2}
    optimizer = KFAC(
        model,
        lr=1.0,
        damping=lam,
        damping_method="exact",
        factor_decay=0.7,
        kl_clip=None,
        momentum=0.0,
        fisher="exact",
        likelihood="categorical",
        **settings,
    )
    inverses = {}
    for k in range(1, 11):
        x, y = make_batch("categorical", 24, 6, 3, seed=k)
        rows = dense_rows(model, x, "categorical")
        before = {name: layer_matrix(module) for name, module in linear_layers(model).items()}
        optimizer.step(make_closure(model, x, y, "categorical"))
        decay = min(1 - 1 / k, 0.7)
        for name, (a, g) in rows.items():
            new = torch.einsum("ntp,ntq->pq", a, a) / 24, torch.einsum("cntp,cntq->pq", g, g) / 24
            old = averages.get(name, new)
            averages[name] = [decay * o + (1 - decay) * n for o, n in zip(old, new, strict=True)]
            if k in (1, 2, 4, 8):
                F = torch.kron(averages[name][1], averages[name][0])  # of the rows of [W b], one after the other
                inverses[name] = torch.linalg.inv(F + lam * torch.eye(len(F), dtype=F.dtype))
            module = model.get_submodule(name)
            expected = (inverses[name] @ layer_gradient(module).flatten()).view_as(before[name])
            assert relative_error(before[name] - layer_matrix(module), expected) < 1e-10


def test_gamma_is_tried_in_updates_whose_number_is_a_multiple():
    settings = {"rescale": "alpha", "adaptive_gamma": True, "kl_clip": None, "momentum": 0.0, "statistics_every": 1}
    settings |= {"inverses_every": 5, "gamma_every": 5, "warmup_schedule": "first_updates", "warmup_updates": 3}
    model = network()
    optimizer = KFAC(model, lr=1.0, likelihood="categorical", **settings)
    gammas = [optimizer.readings()["gamma"]]
    for k in range(1, 22):
        train(optimizer, model, 1, first=k)
        gammas.append(optimizer.readings()["gamma"])
    changed = [k for k in range(1, 22) if gammas[k] != gammas[k - 1]]
    assert changed
    assert set(changed) <= {5, 10, 15, 20}
    ratio = 0.95**2.5
    for k in changed:
        assert min(gammas[k] / gammas[k - 1], gammas[k - 1] / gammas[k]) == pytest.approx(ratio, rel=1e-12)
