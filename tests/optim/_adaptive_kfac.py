"""K-FAC that sets the length of its own updates, on a small problem, and the dense quadratic model it goes by."""

from __future__ import annotations

import torch

from kftune.optim import KFAC
from tests.optim._dense import DTYPE, make_batch, make_closure, make_loss
from tests.optim._dense_objective import dense_ggn, flatten, objective_gradient

OWN_STEP = {"lr": 1.0, "kl_clip": None, "momentum": 0.0}
EACH_TIME = {"fisher": "exact", "factor_decay": 0.0, "statistics_every": 1, "inverses_every": 1}


def build(model, rescale="alpha_and_momentum", likelihood="categorical", **changes):
    return KFAC(model, likelihood=likelihood, rescale=rescale, **(OWN_STEP | EACH_TIME | changes))


def position(model):
    return flatten(model.parameters())


def step(optimizer, model, batch, likelihood="categorical"):
    """The change of all parameters in one update."""
    before = position(model)
    optimizer.step(make_closure(model, *batch, likelihood))
    return position(model) - before


def batches(n, likelihood="categorical", size=12):
    return [make_batch(likelihood, size, 4, 3, seed=seed) for seed in range(n)]


def curvature(model, batch, likelihood, damping, weight_decay):
    """(C, ∇h) of M, dense."""
    F = dense_ggn(model, *batch, make_loss(likelihood))
    C = F + (damping + weight_decay) * torch.eye(len(F), dtype=DTYPE)
    return C, objective_gradient(model, *batch, make_loss(likelihood), weight_decay)
