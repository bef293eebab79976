"""What ``weight_sharing`` makes of a module that is used twice, in every method that has it: one block for all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kftune.optim import OPTIMIZERS
from tests.optim._contract import build
from tests.optim._dense import (
    DTYPE,
    layer_gradient,
    layer_matrix,
    make_closure,
    make_loss,
    relative_error,
    unvec,
    vec,
)

DAMPING = 0.05
SHARING = ["expand", "reduce"]


class Twice(nn.Module):
    """(N, 4), or (N, T, 4) with a mean over the positions of the second use's output, → 3 outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.last = nn.Linear(4, 4, dtype=DTYPE), nn.Linear(4, 3, dtype=DTYPE)

    def forward(self, x):
        h = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.last(h.mean(dim=1) if h.dim() > 2 else h)


class Coarser(Twice):
    """Its uses have unlike numbers of positions."""

    def forward(self, x):
        h = torch.tanh(self.twice(x))
        h = torch.cat([h[:, :2].mean(dim=1, keepdim=True), h[:, 2:3]], dim=1)
        return self.last(torch.tanh(self.twice(h)).mean(dim=1))


CASES = {"no positions": (Twice, (6, 4)), "positions": (Twice, (6, 5, 4)), "unlike positions": (Coarser, (6, 5, 4))}
cases = pytest.mark.parametrize(("network", "shape"), CASES.values(), ids=CASES)


def batch(shape):
    g = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=g, dtype=DTYPE) + 0.3, torch.randn(shape[0], 3, generator=g, dtype=DTYPE)


def dense_factors(model, name, x, sharing):
    """(A, G) for ``mse_loss`` by torch alone: the uses are rows of their own, and with ``reduce`` only these are."""
    inputs, outputs = [], []

    def see(_module, args, output):
        inputs.append(args[0].detach())
        outputs.append(output)

    handle = model.get_submodule(name).register_forward_hook(see)
    output = model(x)
    handle.remove()
    n, n_outputs = output.shape
    A_rows, G_rows = [], []
    for a in inputs:
        rows = a.reshape(n, -1, a.shape[-1])
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], dim=2)
        A_rows.append(rows.mean(dim=1) if sharing == "reduce" else rows.flatten(0, 1))
    for o in range(n_outputs):
        root = torch.zeros_like(output)
        root[:, o] = math.sqrt(2 / n_outputs)
        for g in torch.autograd.grad(output, outputs, root, retain_graph=True):
            rows = g.reshape(n, -1, g.shape[-1])
            G_rows.append(rows.sum(dim=1) if sharing == "reduce" else rows.flatten(0, 1))
    A, G = torch.cat(A_rows), torch.cat(G_rows)
    return A.T @ A / len(A), G.T @ G / n


def exact(V, A, G):
    F = torch.kron(A, G)
    return unvec(torch.linalg.solve(F + DAMPING * torch.eye(len(F), dtype=DTYPE), vec(V)), V)


def factored(V, A, G):
    pi = math.sqrt((A.trace() / len(A)) / (G.trace() / len(G)))
    damped_A = A + pi * math.sqrt(DAMPING) * torch.eye(len(A), dtype=DTYPE)
    damped_G = G + math.sqrt(DAMPING) / pi * torch.eye(len(G), dtype=DTYPE)
    return torch.linalg.inv(damped_G) @ V @ torch.linalg.inv(damped_A)


def of_inputs(V, A, G):
    return DAMPING * V @ torch.linalg.inv(A + DAMPING * torch.eye(len(A), dtype=DTYPE))


RULES = {
    "kfac": ({"damping_method": "exact"}, exact),
    "cg_fac": ({"operator": "kronecker", "cg_iterations": 300, "cg_tolerance": 1e-14}, exact),
    "skfac": ({}, factored),
    "two_level_kfac": ({"coarse_weight": 0.0}, factored),
    "foof": ({}, of_inputs),
}


@cases
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("name", RULES)
def test_every_use_is_a_row(name, sharing, network, shape):
    options, rule = RULES[name]
    plain = {"lr": 1.0, "momentum": 0.0, "damping": DAMPING, "weight_sharing": sharing}
    plain |= {} if name == "foof" else {"kl_clip": None, "fisher": "exact"}
    x, y = batch(shape)
    for parts in (None, (2, 4)):
        model = network()
        A, G = dense_factors(model, "twice", x, sharing)
        make_loss("gaussian")(model(x), y).backward()
        expected = rule(layer_gradient(model.twice), A, G)
        before = layer_matrix(model.twice)
        entry = next(entry for entry in OPTIMIZERS if entry.name == name)
        optimizer = build(entry, model, likelihood="gaussian", **plain, **options)
        if parts is None:
            optimizer.step(make_closure(model, x, y, "gaussian"))
        else:
            for part in zip(x.split(parts), y.split(parts), strict=True):
                optimizer.accumulate(make_closure(model, *part, "gaussian"))
            optimizer.step()
        assert relative_error(before - layer_matrix(model.twice), expected) < 1e-10
