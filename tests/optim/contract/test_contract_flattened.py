"""What every registered optimizer makes of sequences that a model flattens to (examples · positions, …)."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from kftune.optim import FOOF, KFAC, OPTIMIZERS
from tests.optim._contract import build, parameters
from tests.optim._dense import DTYPE, make_closure, stored_factors
from tests.optim._dense_rows import dense_rows

SHARING = [
    e for e in OPTIMIZERS if "weight_sharing" in inspect.signature(e.cls).parameters and "alpha" not in e.readings
]


class Sequences(nn.Module):
    """(N, T, 3) → 3 outputs: a layer at every position, on (N, T, 3) or on (N·T, 3), then the mean."""

    def __init__(self, *, flat):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.flat = nn.Linear(3, 5, dtype=DTYPE), nn.Linear(5, 3, dtype=DTYPE), flat

    def forward(self, x):
        n, t, _ = x.shape
        h = self.a(x.reshape(n * t, -1)).view(n, t, -1) if self.flat else self.a(x)
        return self.b(torch.tanh(h).mean(dim=1))


def batch(step=0):
    g = torch.Generator().manual_seed(step)
    return torch.randn(6, 7, 3, generator=g, dtype=DTYPE) + 0.5, torch.randn(6, 3, generator=g, dtype=DTYPE)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize("entry", SHARING, ids=lambda entry: entry.name)
def test_flattening_changes_nothing(entry, fisher, sharing):
    own = {"variant": "kfac_norm"} if entry.name == "foof" else {}
    found = []
    for flat in (False, True):
        model = Sequences(flat=flat)
        optimizer = build(entry, model, likelihood="gaussian", weight_sharing=sharing, fisher=fisher, **own)
        for step in range(3):
            x, y = batch(step)
            if step == 1:  # in micro-batches
                for part in zip(x.split((2, 4)), y.split((2, 4)), strict=True):
                    optimizer.accumulate(make_closure(model, *part, "gaussian"))
                optimizer.step()
            else:
                optimizer.step(make_closure(model, x, y, "gaussian"))
        found.append(parameters(model))
    for flattened, expected in zip(*found, strict=True):
        torch.testing.assert_close(flattened, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("flat", [False, True])
def test_reduced_factors_are_the_dense_ones(flat):
    """A of the mean ā over positions, G of the sum of g, by torch alone."""
    x, y = batch()
    model = Sequences(flat=flat)
    optimizer = KFAC(model, lr=0.0, likelihood="gaussian", fisher="exact", weight_sharing="reduce")
    optimizer.step(make_closure(model, x, y, "gaussian"))
    for name, (inputs, gradients) in dense_rows(Sequences(flat=False), x, "gaussian").items():
        a, g = inputs.mean(dim=1), gradients.sum(dim=2)
        A, G = stored_factors(optimizer, name)
        torch.testing.assert_close(A, a.T @ a / len(x))
        torch.testing.assert_close(G, torch.einsum("cni,cnj->ij", g, g) / len(x))


def test_statistics_without_updates_are_reduced_too():
    x, y = batch()
    found = []
    for flat in (False, True):
        model = Sequences(flat=flat)
        optimizer = FOOF(model, initial_statistics=2, weight_sharing="reduce")
        optimizer.step(make_closure(model, x, y, "gaussian"))
        found.append(optimizer.state_dict()["extra"]["layers"]["a"]["input_covariance"])
    torch.testing.assert_close(*found)


def test_rows_of_no_example_are_an_error():
    x, y = batch()
    model = Sequences(flat=True)

    def closure():
        loss, output = make_closure(model, x, y, "gaussian")()
        return loss, output[:5]

    with pytest.raises(RuntimeError, match="layer 'a' was given 42 inputs, which is no multiple of the 5"):
        KFAC(model, likelihood="gaussian", weight_sharing="reduce").step(closure)
