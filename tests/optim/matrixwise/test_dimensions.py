"""SOAP and Shampoo with a basis, or a root, for every dimension of a kernel, against Kronecker products of them all."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from scipy.linalg import fractional_matrix_power
from torch import nn

from kftune.optim import SOAP, Shampoo
from kftune.optim.matrixwise.optimizer import merged
from tests.optim._contract import parameters
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net, relative_error

EXACT = 1e-9  # relative, float64; bases by Cholesky factors of Gram matrices lose half the digits


def kernel_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Unflatten(1, (2, 3, 4)), nn.Conv2d(2, 3, (2, 3), bias=False), nn.Flatten()).double()


def gradients_along(model, steps, change):
    """Follow ``change``, (kernel, gradient) → new kernel."""
    for step in range(steps):
        x, y = make_batch("gaussian", 15, 24, 12, seed=step)
        model.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(change(p.clone(), p.grad.clone()))


def train(optimizer, model, steps):
    for step in range(steps):
        optimizer.step(make_closure(model, *make_batch("gaussian", 15, 24, 12, seed=step), "gaussian"))


def gram(tensor, i):
    """G_(i)G_(i)ᵀ, entry by entry: all indices but the i-th are summed."""
    letters = "abcdef"[: tensor.ndim]
    return torch.einsum(f"{letters},{letters.replace(letters[i], 'z')}->{letters[i]}z", tensor, tensor)


def kron(matrices):
    return functools.reduce(torch.kron, [own.contiguous() for own in matrices])


class DenseSOAP:
    """The basis of the whole kernel as one Kronecker product, of a first eigendecomposition and iterations of it."""

    def __init__(self, view, every, longest):
        self.view, self.every, self.longest, self.t = view, every, longest, 0
        self.factors, self.M, self.v = [0.0] * len(view), 0.0, 0.0

    def __call__(self, W, G):
        G = G.reshape(self.view)
        new = W.reshape(self.view)
        if self.t:
            Q = kron(self.bases)
            g = (Q.T @ G.flatten()).reshape(self.view)
            self.M = 0.8 * self.M + 0.2 * G
            self.v = 0.9 * self.v + 0.1 * g**2
            m = (Q.T @ self.M.flatten()).reshape(self.view) / (1 - 0.8**self.t)
            P = (Q @ (m / ((self.v / (1 - 0.9**self.t)).sqrt() + 1e-8)).flatten()).reshape(self.view)
            new = (1 - 0.02 * 0.1) * new - 0.02 * P
        self.factors = [0.9 * old + 0.1 * gram(G, i) for i, old in enumerate(self.factors)]
        if self.t == 0:
            self.bases = [
                torch.linalg.eigh(factor).eigenvectors
                if len(factor) <= self.longest
                else torch.eye(len(factor), dtype=DTYPE)
                for factor in self.factors
            ]
        elif self.t % self.every == 0:
            for i, (factor, Q) in enumerate(zip(self.factors, self.bases, strict=True)):
                if len(factor) <= self.longest:
                    order = torch.argsort(torch.diag(Q.T @ factor @ Q), descending=True)
                    product = factor @ Q[:, order]
                    cholesky = torch.linalg.cholesky(product.T @ product)
                    self.bases[i] = torch.linalg.solve_triangular(cholesky, product.T, upper=False).T
                    self.v = self.v.index_select(i, order)
        self.t += 1
        return new.reshape(W.shape)


# Kernel (3, 2, 2, 3): every unfolding of the first gradient has full rank, so that bases are unique but for signs.
VIEWS = [("each", 100, (3, 2, 2, 3)), ("each", 2, (3, 2, 2, 3)), ("merged", 6, (6, 6)), ("merged", 4, (3, 4, 3))]


@pytest.mark.parametrize(("dimensions", "longest", "view"), VIEWS)
@pytest.mark.parametrize("every", [1, 3])
def test_soap_has_a_basis_for_every_dimension(dimensions, longest, view, every):
    ours, theirs = kernel_net(), kernel_net()
    adam = {"lr": 0.02, "beta1": 0.8, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.1}
    settings = {"inverses_every": every, "max_dimension": longest}
    train(SOAP(ours, dimensions=dimensions, **settings, **adam), ours, 8)
    gradients_along(theirs, 8, DenseSOAP(view, every, longest))
    assert relative_error(ours[1].weight.detach(), theirs[1].weight.detach()) < EXACT
    matrix = kernel_net()
    train(SOAP(matrix, **settings, **adam), matrix, 8)
    assert relative_error(matrix[1].weight.detach(), theirs[1].weight.detach()) > 1e-3


class DenseShampoo:
    """Roots of dense factors by SciPy, all dimensions together as one Kronecker product; no grafting."""

    def __init__(self, view, every, longest):
        self.view, self.every, self.longest, self.t = view, every, longest, 0
        self.factors, self.M, self.root = [0.0] * len(view), 0.0, None

    def __call__(self, W, G):
        self.t += 1
        G, new = G.reshape(self.view), W.reshape(self.view)
        self.factors = [0.9 * old + 0.1 * gram(G, i) for i, old in enumerate(self.factors)]
        self.M = 0.8 * self.M + 0.2 * G
        P = self.M / (1 - 0.8**self.t)
        if self.t % self.every == 0:
            order = sum(n <= self.longest for n in self.view)
            roots = []
            for factor in self.factors:
                own = factor / (1 - 0.9**self.t)
                own = own + 1e-4 * torch.linalg.eigvalsh(own)[-1] * torch.eye(len(own), dtype=DTYPE)
                power = torch.from_numpy(fractional_matrix_power(own.numpy(), -1 / (2 * order)).real.copy())
                roots.append(power if len(own) <= self.longest else torch.eye(len(own), dtype=DTYPE))
            self.root = kron(roots)
        if self.root is not None:
            P = (self.root @ P.flatten()).reshape(self.view)
        return ((1 - 0.03 * 0.05) * new - 0.03 * P).reshape(W.shape)


@pytest.mark.parametrize(("dimensions", "longest", "view"), VIEWS)
def test_shampoo_has_a_root_for_every_dimension(dimensions, longest, view):
    """With the exponent −1/(2k) of k dimensions that have one."""
    ours, theirs = kernel_net(), kernel_net()
    settings = {"lr": 0.03, "beta1": 0.8, "damping": 1e-4, "weight_decay": 0.05, "factor_decay": 0.9}
    settings |= {"inverses_every": 2, "max_dimension": longest, "grafting": "none"}
    if (dimensions, longest) == ("each", 2):
        assert Shampoo(kernel_net(), dimensions=dimensions, **settings).coverage() == {
            "1.weight": "Shampoo, dimension1 and dimension2 only: 3 > max_dimension 2"
        }
    train(Shampoo(ours, dimensions=dimensions, **settings), ours, 7)
    gradients_along(theirs, 7, DenseShampoo(view, 2, longest))
    assert relative_error(ours[1].weight.detach(), theirs[1].weight.detach()) < EXACT


@pytest.mark.parametrize("cls", [SOAP, Shampoo])
def test_matrices_are_the_same_with_a_basis_for_each_of_two_dimensions(cls):
    runs = []
    for dimensions in ("matrix", "each"):
        model = make_net(24, 7, 12)
        train(cls(model, inverses_every=2, dimensions=dimensions), model, 5)
        runs.append(parameters(model))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("cls", [SOAP, Shampoo])
@pytest.mark.parametrize(("dimensions", "longest"), [("each", 100), ("merged", 4)])
def test_a_resumed_run_goes_on_bit_for_bit(cls, dimensions, longest):
    models = [kernel_net(), kernel_net()]
    settings = {"inverses_every": 2, "dimensions": dimensions, "max_dimension": longest}
    one, other = (cls(model, **settings) for model in models)
    train(one, models[0], 5)
    models[1].load_state_dict(models[0].state_dict())
    other.load_state_dict(one.state_dict())
    for model, optimizer in zip(models, (one, other), strict=True):
        train(optimizer, model, 4)
    assert torch.equal(models[0][1].weight, models[1][1].weight)
    with pytest.raises(ValueError, match=r"factor of parameter|shape"):
        cls(kernel_net()).load_state_dict(one.state_dict())


def merged_as_the_authors_do(shape, longest):
    """Row by row: a run of dimensions is closed when the next would make it too long."""
    found, run = [], 1
    for n in shape:
        if run * n <= longest:
            run *= n
        elif run > 1:
            found.append(run)
            run = n
        else:
            found.append(n)
            run = 1
    return (*found, run) if run > 1 or not found else tuple(found)


def test_dimensions_are_merged_as_the_authors_do():
    for shape in itertools.product((1, 2, 3, 5, 8), repeat=4):
        for longest in (1, 2, 6, 15, 40, 1000):
            assert merged(shape, longest) == merged_as_the_authors_do(shape, longest)
    assert merged((64, 64, 3, 3), 10_000) == (4096, 9)
    assert merged((64, 64, 3, 3), 1024) == (64, 576)


@pytest.mark.parametrize("cls", [SOAP, Shampoo])
@pytest.mark.parametrize(("dimensions", "longest"), [("each", 100), ("merged", 4), ("merged", 100)])
def test_micro_batches_give_the_update_of_their_union(cls, dimensions, longest):
    """Also of a kernel that is one long vector, whose factor has rank 1 at first: any basis of the rest is as good."""
    models = [kernel_net(), kernel_net()]
    settings = {"inverses_every": 2, "dimensions": dimensions, "max_dimension": longest}
    whole, parts = (cls(model, **settings) for model in models)
    for step in range(6):
        x, y = make_batch("gaussian", 15, 24, 12, seed=step)
        whole.step(make_closure(models[0], x, y, "gaussian"))
        for part in zip(x.split((4, 11)), y.split((4, 11)), strict=True):
            parts.accumulate(make_closure(models[1], *part, "gaussian"))
        parts.step()
    assert relative_error(models[1][1].weight.detach(), models[0][1].weight.detach()) < 1e-7
