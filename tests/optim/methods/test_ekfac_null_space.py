"""EKFAC where A and G have a null space, against the same in projectors."""

from __future__ import annotations

import torch
from torch import nn

from kftune.optim import EKFAC
from tests.optim._dense import (
    DTYPE,
    empirical_fisher_block,
    layer_gradient,
    layer_matrix,
    make_batch,
    make_closure,
    relative_error,
    stored_factors,
)


def eigenspaces(matrix):
    """Projectors on the eigenspaces of a matrix: a null space, and single vectors."""
    values, vectors = torch.linalg.eigh(matrix)
    n_null = int((values < 1e-12 * values[-1]).sum())
    parts = vectors.split([n_null] + [1] * (len(values) - n_null), dim=1)
    return [part @ part.T for part in parts if part.shape[1]]


def test_a_null_space_has_one_scaling():
    """Without any basis: S of a pair of eigenspaces is the mean over them, and P is made of projections."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).to(DTYPE)
    x, y = make_batch("categorical", 8, 8, 3)
    settings = {"statistics_every": 5, "scalings_every": 1, "inverses_every": 5, "warmup_updates": 0, "momentum": 0.0}
    settings["kl_clip"] = None
    optimizer = EKFAC(model, lr=1.0, damping=0.03, likelihood="categorical", fisher="empirical", **settings)
    blocks = []
    for own in (slice(0, 4), slice(4, 8)):  # the second batch leaves the first one's spaces
        blocks.append(empirical_fisher_block(model, "0", x[own], y[own], "categorical"))
        before = layer_matrix(model[0])
        optimizer.accumulate(make_closure(model, x[own], y[own], "categorical"))
        optimizer.step()
    V = layer_gradient(model[0])
    spaces_A, spaces_G = (eigenspaces(factor) for factor in stored_factors(optimizer, "0"))
    assert len(spaces_A) == 5  # of 9: a null space, and four
    assert len(spaces_G) == 5  # of 6
    expected = torch.zeros_like(V)
    for space_A in spaces_A:
        for space_G in spaces_G:
            projector = torch.kron(space_A, space_G)
            S = torch.stack([(projector @ block).trace() for block in blocks]).mean() / projector.trace()
            expected += space_G @ V @ space_A / (S + 0.03)
    assert relative_error(before - layer_matrix(model[0]), expected) < 1e-10
