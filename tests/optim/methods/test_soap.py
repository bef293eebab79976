"""SOAP against a dense replay of its algorithm, its invariances, and its reduction to AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.errors import CurvatureError, DivergenceError
from kftune.optim.matrixwise.roots import EigenBasis, eigenbases, iterated_bases
from kftune.optim.methods.adamw import AdamW
from kftune.optim.methods.soap import SOAP
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net, relative_error

EXACT = 1e-10  # relative, float64
ADAM = {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.1}


def train(optimizer, model, steps, d_in=5, d_out=5, *, first=0):
    for step in range(first, first + steps):
        optimizer.step(make_closure(model, *make_batch("gaussian", 12, d_in, d_out, seed=step), "gaussian"))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Reference:
    """SOAP of one matrix with both bases and both averages kept in the original coordinates where that is possible."""

    def __init__(self, W, every, *, lr, beta1, beta2, eps, weight_decay):
        self.W, self.every, self.t = W.clone(), every, 0
        self.lr, self.beta1, self.beta2, self.eps, self.weight_decay = lr, beta1, beta2, eps, weight_decay
        self.L = self.R = self.M = self.v = 0

    def step(self, G):
        if self.t > 0:
            t, QL, QR = self.t, self.QL, self.QR
            self.M = self.beta1 * self.M + (1 - self.beta1) * G
            self.v = self.beta2 * self.v + (1 - self.beta2) * (QL.T @ G @ QR) ** 2
            m = QL.T @ self.M @ QR / (1 - self.beta1**t)
            P = QL @ (m / ((self.v / (1 - self.beta2**t)).sqrt() + self.eps)) @ QR.T
            self.W = (1 - self.lr * self.weight_decay) * self.W - self.lr * P
        self.L = self.beta2 * self.L + (1 - self.beta2) * G @ G.T
        self.R = self.beta2 * self.R + (1 - self.beta2) * G.T @ G
        if self.t == 0:
            self.QL, self.QR = (torch.linalg.eigh(factor).eigenvectors for factor in (self.L, self.R))
        elif self.t % self.every == 0:
            self.QL, left = self.iterate(self.L, self.QL)
            self.QR, right = self.iterate(self.R, self.QR)
            self.v = self.v[left][:, right]
        self.t += 1

    @staticmethod
    def iterate(factor, basis):
        order = torch.argsort(torch.diag(basis.T @ factor @ basis), descending=True)
        # Orthogonalisation from the Cholesky factor of the Gram matrix instead of a QR decomposition.
        product = factor @ basis[:, order]
        cholesky = torch.linalg.cholesky(product.T @ product)
        return torch.linalg.solve_triangular(cholesky, product.T, upper=False).T, order


@pytest.mark.parametrize("every", [1, 3])
def test_updates_are_the_papers(every):
    """Square, so that the first gradient has full rank and the bases are unique but for signs."""
    model = make_net(4, 4, bias=False)
    reference = Reference(model[0].weight.detach(), every, **ADAM)
    optimizer = SOAP(model, inverses_every=every, **ADAM)
    for step in range(8):
        x, y = make_batch("gaussian", 12, 4, 4, seed=step)
        residual = x @ reference.W.T - y
        reference.step(2 * residual.T @ x / residual.numel())
        optimizer.step(make_closure(model, x, y, "gaussian"))
        assert relative_error(model[0].weight.detach(), reference.W) < EXACT


@pytest.mark.parametrize("bias", [True, False])
def test_without_bases_it_is_adamw_but_for_the_first_step(bias):
    ours, theirs = make_net(5, 7, 5, bias=bias), make_net(5, 7, 5, bias=bias)
    optimizer = SOAP(ours, max_dimension=0, **ADAM)
    train(optimizer, ours, 7)
    train(AdamW(theirs, **ADAM), theirs, 6, first=1)
    assert torch.equal(weights(ours), weights(theirs))
    assert set(optimizer.coverage().values()) == {"AdamW"}


class Diagonal(nn.Module):
    """Output i is what W makes of the i-th unit vector in place i, so that W's gradient is always diagonal."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.ones(3, 3, dtype=DTYPE))

    def forward(self, x):
        return x * self.W.diagonal()


def test_with_permutations_as_bases_it_is_adamw_too():
    """The factors of diagonal gradients are diagonal: the bases are unit vectors, reordered as the gradients change."""
    ours, theirs = Diagonal(), Diagonal()
    adam = ADAM | {"eps": 1e-3}  # rounding in the bases is divided by it
    optimizer = SOAP(ours, inverses_every=2, **adam)
    assert optimizer.coverage() == {"W": "SOAP"}
    train(optimizer, ours, 9, 3, 3)
    train(AdamW(theirs, **adam), theirs, 8, 3, 3, first=1)
    assert relative_error(ours.W.detach(), theirs.W.detach()) < 1e-13


def test_the_first_step_gives_the_bases_only():
    model = make_net(5, 7, 5)
    start = weights(model)
    optimizer = SOAP(model, **ADAM)
    train(optimizer, model, 1)
    assert torch.equal(weights(model), start)
    G = model[0].weight.grad
    state = optimizer.state[model[0].weight]
    for basis, factor in ((state["left_basis"], G @ G.T), (state["right_basis"], G.T @ G)):
        rotated = basis.T @ factor @ basis
        assert relative_error(rotated, torch.diag(torch.linalg.eigvalsh(factor).flip(0))) < 1e-12
        assert relative_error(basis.T @ basis, torch.eye(len(basis), dtype=DTYPE)) < 1e-13
    train(optimizer, model, 1)
    assert not torch.equal(weights(model), start)


def test_the_iteration_approaches_the_eigenbasis():
    """From a random basis, at the rate of the ratios of neighbouring eigenvalues, here 1/2 per iteration."""
    g = torch.Generator().manual_seed(0)
    Q, basis = (torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=DTYPE)).Q for _ in range(2))
    M = Q @ torch.diag(0.5 ** torch.arange(6.0, dtype=DTYPE)) @ Q.T
    errors = []
    for _ in range(30):
        (((basis, _), _),) = iterated_bases(["M"], [M.tril()], [EigenBasis(basis, 6)])
        errors.append(((basis.T @ Q).abs() - torch.eye(6, dtype=DTYPE)).abs().max().item())
    assert errors[19] < 1e-4
    assert errors[29] / errors[19] == pytest.approx(0.5**10, rel=0.3)


def test_the_eigenbasis_is_a_fixed_point_and_swaps_are_undone():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(6, 6, generator=g, dtype=DTYPE)
    ((basis, _),) = eigenbases(["M"], [X @ X.T])
    swapped = EigenBasis(basis[:, [1, 0, 2, 3, 5, 4]], 6)
    (((found, _), order),) = iterated_bases(["M"], [X @ X.T], [swapped])
    assert order.tolist() == [1, 0, 2, 3, 5, 4]
    assert relative_error((found.T @ basis).abs(), torch.eye(6, dtype=DTYPE)) < 1e-10


def test_the_averaged_gradient_survives_a_change_of_basis():
    model = make_net(5, 5, bias=False)
    optimizer = SOAP(model, inverses_every=3, **ADAM)
    expected = torch.zeros(5, 5, dtype=DTYPE)
    for step in range(8):
        train(optimizer, model, 1, first=step)
        if step > 0:
            expected = ADAM["beta1"] * expected + (1 - ADAM["beta1"]) * model[0].weight.grad
        state = optimizer.state[model[0].weight]
        found = state["left_basis"] @ state["exp_avg"] @ state["right_basis"].T
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def rotated_run(make_optimizer, rotation, sizes):
    """The weights after training on x·rotationᵀ from W·rotationᵀ in the first layer, rotated back."""
    model = make_net(*sizes)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight @ rotation.T)
    optimizer = make_optimizer(model)
    for step in range(8):
        x, y = make_batch("gaussian", 12, 5, sizes[-1], seed=step)
        optimizer.step(make_closure(model, x @ rotation.T, y, "gaussian"))
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight @ rotation)
    return weights(model)


def rotation_error(make_optimizer, sizes=(5, 5, 5)):
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=DTYPE)).Q
    identity = torch.eye(5, dtype=DTYPE)
    return relative_error(rotated_run(make_optimizer, rotation, sizes), rotated_run(make_optimizer, identity, sizes))


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("sizes", [(5, 5, 5), (5, 3, 2), (5, 9, 4)], ids=str)
def test_rotating_the_inputs_rotates_the_trajectory(sizes, every):
    """Unless layers are square, the first factors have null spaces, in which any basis is as good."""
    assert rotation_error(lambda model: SOAP(model, inverses_every=every, **ADAM), sizes) < 1e-9


def test_adamw_lacks_that():
    assert rotation_error(lambda model: AdamW(model, **ADAM)) > 1e-3
    assert rotation_error(lambda model: SOAP(model, max_dimension=0, **ADAM)) > 1e-3


def test_an_overflown_factor_is_an_error_that_names_it():
    model = make_net(5, 3, bias=False).float()
    optimizer = SOAP(model, inverses_every=1)
    x, y = (t.float() for t in make_batch("gaussian", 12, 5, 3))
    scale = 1.0

    def closure():
        output = model(x)
        return scale * nn.functional.mse_loss(output, y), output

    optimizer.step(closure)
    before = weights(model)
    scale = 1e25
    with pytest.raises(DivergenceError, match=r"left factor of parameter '0\.weight' is not finite"):
        optimizer.step(closure)
    assert torch.equal(weights(model), before)


def test_a_factor_without_a_basis_is_an_error_that_names_it():
    factor = torch.full((3, 3), 1e38)
    with pytest.raises(CurvatureError, match="the left factor has no orthogonal basis"):
        iterated_bases(["left factor"], [factor], [EigenBasis(torch.full((3, 3), 1.0), 3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rank_is_where_a_gap_is(dtype):
    """Eigenvalues that decay steadily into rounding leave nothing to say."""
    g = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(8, 8, generator=g, dtype=DTYPE)).Q
    eps = torch.finfo(dtype).eps
    for values, rank in (
        ([1, 0.1, 1e-2, 0, 0, 0, 0, 0], 3),
        ([1] * 8, 8),
        ([1, 0.1, 1e-2, 1e-3, 300 * eps, 100 * eps, 30 * eps, 10 * eps], 8),
        ([0] * 8, 0),
    ):
        M = (Q * torch.tensor(values, dtype=DTYPE) @ Q.T).to(dtype)
        (basis,) = eigenbases(["M"], [M])
        assert basis.rank == rank
        ((again, _),) = iterated_bases(["M"], [M], [basis])
        assert again.rank == rank
        ((found, _),) = iterated_bases(["M"], [torch.eye(8, dtype=dtype)], [basis])
        assert found.rank == 8
        identity = torch.eye(8, dtype=DTYPE)
        assert relative_error(again.vectors.T.double() @ again.vectors.double(), identity) < 100 * eps


def test_a_column_that_adds_nothing_comes_last():
    """Of a factor that lost its rank: what the others span does not depend on it."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(6, 2, generator=g, dtype=DTYPE)
    basis = EigenBasis(torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=DTYPE)).Q, 6)
    ((found, order),) = iterated_bases(["M"], [X @ X.T], [basis])
    assert found.rank == 2
    assert sorted(order.tolist()) == list(range(6))
    projector = found.vectors[:, :2] @ found.vectors[:, :2].T
    assert relative_error(projector @ X, X) < 1e-12
