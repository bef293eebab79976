"""The block-tridiagonal inverse of a chain of layers, by dense matrices."""

from __future__ import annotations

import itertools

import torch

from kftune.optim.preconditioning.damping import split_damping
from tests.optim._dense import DTYPE
from tests.optim._dense_rows import dense_rows


def moments_of(model, x, likelihood="categorical"):
    """(A_i, G_i) of every layer, (A_{i,i+1}, G_{i,i+1}) of every pair, from a model's rows."""
    rows = list(dense_rows(model, x, likelihood).values())

    def second(one, other):
        A = torch.einsum("ntp,ntq->pq", one[0], other[0]) / len(x)
        return A, torch.einsum("cntp,cntq->pq", one[1], other[1]) / len(x)

    return [second(own, own) for own in rows], [second(*pair) for pair in itertools.pairwise(rows)]


def damped(factors, damping):
    found = []
    for A, G in factors:
        on_A, on_G = split_damping(A, G, damping, "factored")
        found.append((A + on_A * torch.eye(len(A), dtype=DTYPE), G + on_G * torch.eye(len(G), dtype=DTYPE)))
    return found


def dense_inverse(factors, crosses):
    """F̂⁻¹ = ΞᵀΛΞ by Kronecker products, from damped factors."""
    sizes = [len(A) * len(G) for A, G in factors]
    Xi, Lambda = torch.eye(sum(sizes), dtype=DTYPE), []
    starts = [0, *itertools.accumulate(sizes)]
    for i, (A, G) in enumerate(factors):
        block = torch.kron(A, G)
        if i < len(crosses):
            (A_next, G_next), (A_cross, G_cross) = factors[i + 1], crosses[i]
            Psi = torch.kron(A_cross @ torch.linalg.inv(A_next), G_cross @ torch.linalg.inv(G_next))
            Xi[starts[i] : starts[i + 1], starts[i + 1] : starts[i + 2]] = -Psi
            block = block - Psi @ torch.kron(A_next, G_next) @ Psi.T
        Lambda.append(torch.linalg.inv(block))
    return Xi.T @ torch.block_diag(*Lambda) @ Xi
