"""Block-tridiagonal K-FAC: the inverse against its definition by dense matrices, and its updates."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from kftune.optim import KFAC, BlockTridiagonalKFAC
from kftune.optim.preconditioning.tridiagonal import Cross, Moments, apply, invert
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
from tests.optim._dense_tridiagonal import damped, dense_inverse, moments_of

EXACT = 1e-10  # relative, float64; observed at most 3e-14
MOMENTS = 1e-13  # relative, float64; observed at most 4e-15: sums of the same numbers in another order


def assemble(sizes, blocks):
    """A symmetric matrix of (i, j) → block, i ≤ j, and zeros."""
    rows = []
    for i, height in enumerate(sizes):
        row = [
            blocks[i, j] if (i, j) in blocks else blocks[j, i].T if (j, i) in blocks else torch.zeros(height, width)
            for j, width in enumerate(sizes)
        ]
        rows.append(torch.cat([block.to(DTYPE) for block in row], dim=1))
    return torch.cat(rows)


def applied(factors, crosses, damping):
    """What :func:`apply` does, as a matrix on the layers' vec(V) one after the other."""
    chain = [Moments(str(i), A, G, damping) for i, (A, G) in enumerate(factors)]
    links, end = invert(chain, [Cross(*pair) for pair in crosses])
    sizes = [len(A) * len(G) for A, G in factors]
    columns = []
    for unit in torch.eye(sum(sizes), dtype=DTYPE):
        V = [unvec(part, A.new_empty(len(G), len(A))) for part, (A, G) in zip(unit.split(sizes), factors, strict=True)]
        columns.append(torch.cat([vec(P) for P in apply(links, end, V)]))
    return torch.stack(columns, dim=1)


def chain_moments(*sizes, n=30):
    torch.manual_seed(1)
    model = make_net(*sizes)
    return moments_of(model, torch.randn(n, sizes[0], dtype=DTYPE))


@pytest.mark.parametrize("damping", [1e-3, 1.0])
@pytest.mark.parametrize("n", [3, 30])  # fewer examples than any side of A: all layers depend on each other fully
def test_it_is_the_inverse_that_the_paper_defines(n, damping):
    factors, crosses = chain_moments(3, 4, 3, 2, n=n)
    with_damping = damped(factors, damping)
    inverse = applied(factors, crosses, damping)
    assert relative_error(inverse, dense_inverse(with_damping, crosses)) < EXACT
    assert relative_error(inverse, inverse.T) < EXACT
    assert torch.linalg.eigvalsh(inverse).min() > 0
    sizes = [len(A) * len(G) for A, G in factors]
    found, expected = torch.linalg.inv(inverse), {}
    for i, (A, G) in enumerate(with_damping):
        expected[i, i] = torch.kron(A, G)
        if i < len(crosses):
            expected[i, i + 1] = torch.kron(*crosses[i])
    blocks = [row.split(sizes, dim=1) for row in found.split(sizes)]
    inverse_blocks = [row.split(sizes, dim=1) for row in inverse.split(sizes)]
    for i, j in itertools.product(range(3), range(3)):
        if abs(i - j) <= 1:
            assert relative_error(blocks[min(i, j)][max(i, j)], expected[min(i, j), max(i, j)]) < EXACT
            assert inverse_blocks[i][j].norm() > 1e-3 * inverse.norm() or i == j
        else:
            assert inverse_blocks[i][j].norm() < EXACT * inverse.norm()
            assert blocks[i][j].norm() > 1e-3 * found.norm()


def test_of_two_layers_it_is_the_full_inverse():
    factors, crosses = chain_moments(3, 4, 2)
    with_damping = damped(factors, 1e-2)
    blocks = {
        (0, 0): torch.kron(*with_damping[0]),
        (1, 1): torch.kron(*with_damping[1]),
        (0, 1): torch.kron(*crosses[0]),
    }
    full = assemble([len(A) * len(G) for A, G in factors], blocks)
    assert relative_error(applied(factors, crosses, 1e-2), torch.linalg.inv(full)) < EXACT


def test_without_cross_moments_it_is_block_diagonal():
    factors, crosses = chain_moments(3, 4, 3, 2)
    nothing = [(torch.zeros_like(A), torch.zeros_like(G)) for A, G in crosses]
    expected = torch.block_diag(*[torch.linalg.inv(torch.kron(A, G)) for A, G in damped(factors, 0.1)])
    assert relative_error(applied(factors, nothing, 0.1), expected) < EXACT
    assert relative_error(applied(factors, crosses, 0.1), expected) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_that_are_the_same_stay_finite_at_almost_no_damping(dtype):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 5, generator=g).to(dtype), torch.randn(9, 4, generator=g).to(dtype)
    A, G = a.T @ a / 9, b.T @ b / 9
    links, end = invert([Moments("0", A, G, 1e-12), Moments("1", A, G, 1e-12)], [Cross(A, G)])
    assert links[0].A_values.max() < 1
    P = apply(links, end, [torch.ones(4, 5, dtype=dtype)] * 2)
    assert all(torch.isfinite(own).all() for own in P)
    assert sum(own.sum() for own in P) > 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_update_is_the_dense_product(likelihood, bias):
    model = make_net(4, 6, 5, 3, bias=bias)
    x, y = make_batch(likelihood, 12, 4, 3)
    factors, crosses = moments_of(model, x, likelihood)
    before = [layer_matrix(module) for module in linear_layers(model).values()]
    optimizer = BlockTridiagonalKFAC(
        model, lr=0.5, damping=0.02, likelihood=likelihood, fisher="exact", kl_clip=None, momentum=0.0
    )
    optimizer.step(make_closure(model, x, y, likelihood))
    gradients = [layer_gradient(module) for module in linear_layers(model).values()]
    P = dense_inverse(damped(factors, 0.02), crosses) @ torch.cat([vec(V) for V in gradients])
    parts = P.split([V.numel() for V in gradients])
    for module, old, part in zip(linear_layers(model).values(), before, parts, strict=True):
        assert relative_error((old - layer_matrix(module)) / 0.5, unvec(part, old)) < EXACT


def test_cross_moments_of_a_deep_linear_network_are_exact_fisher_blocks():
    model = make_net(4, 6, 5, 3, activation=None)
    x, y = make_batch("gaussian", 9, 4, 3)
    optimizer = BlockTridiagonalKFAC(model, likelihood="gaussian", fisher="exact")
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    jacobians = vmap(jacrev(lambda p, x: functional_call(model, p, (x[None],))[0]), in_dims=(None, 0))(parameters, x)
    optimizer.step(make_closure(model, x, y, "gaussian"))
    state = optimizer.state_dict()["extra"]["layers"]
    J = {
        name: torch.cat([jacobians[f"{name}.weight"], jacobians[f"{name}.bias"][..., None]], dim=-1)
        .transpose(-1, -2)
        .flatten(2)
        for name in state
    }
    for one, other in itertools.pairwise(state):
        expected = torch.einsum("nop,noq->pq", J[one], J[other]) / len(x) * 2 / 3
        found = torch.kron(state[one]["input_cross"], state[one]["gradient_cross"])
        assert relative_error(found, expected) < MOMENTS


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_running_averages_are_those_of_the_factors(fisher):
    model = make_net(4, 5, 5, 3)
    settings = {"factor_decay": 0.6, "statistics_every": 2, "inverses_every": 4, "warmup_updates": 0}
    optimizer = BlockTridiagonalKFAC(model, lr=0.0, likelihood="categorical", fisher=fisher, **settings)
    expected = None
    for step in range(7):
        x, y = make_batch("categorical", 8, 4, 3, seed=step)
        for part in zip(x.split((3, 5)), y.split((3, 5)), strict=True):
            optimizer.accumulate(make_closure(model, *part, "categorical"))
        optimizer.step()
        if step % 2 == 0:
            new = dense_empirical(model, x, y) if fisher == "empirical" else moments_of(model, x)[1]
            k = step // 2 + 1
            w = min(1 - 1 / k, 0.6)
            pairs = list(itertools.chain.from_iterable(new))
            expected = (
                pairs if expected is None else [w * a + (1 - w) * b for a, b in zip(expected, pairs, strict=True)]
            )
        state = optimizer.state_dict()["extra"]["layers"]
        found = [state[name][key] for name in ("0", "2") for key in ("input_cross", "gradient_cross")]
        for ours, dense in zip(found, expected, strict=True):
            assert relative_error(ours, dense) < MOMENTS
    assert "input_cross" not in state["4"]


def dense_empirical(model, x, y):
    """Cross-moments by the backward pass of each example alone."""
    inputs, gradients = [], []
    for example, label in zip(x, y, strict=True):
        passed, outputs, signal = [], [], example
        for module in model:
            if isinstance(module, nn.Linear):
                passed.append(torch.cat([signal.detach(), signal.new_ones(1)]))
            signal = module(signal)
            if isinstance(module, nn.Linear):
                outputs.append(signal)
        gradients.append(torch.autograd.grad(nn.functional.cross_entropy(signal[None], label[None]), outputs))
        inputs.append(passed)

    def cross(rows, i):
        return sum(torch.outer(own[i], own[i + 1]) for own in rows) / len(x)

    return [(cross(inputs, i), cross(gradients, i)) for i in range(2)]


def test_a_single_layer_is_kfac():
    results = []
    for cls in (KFAC, BlockTridiagonalKFAC):
        model = make_net(4, 3)
        optimizer = cls(model, likelihood="categorical", fisher="exact")
        for step in range(4):
            optimizer.step(make_closure(model, *make_batch("categorical", 12, 4, 3, seed=step), "categorical"))
        results.append(layer_matrix(model[0]))
    assert relative_error(results[1], results[0]) < EXACT


def test_active_kl_clip_gives_kappa():
    kappa, lr, steps = 1e-4, 2.0, {}
    x, y = make_batch("categorical", 20, 6, 3)
    for clip in (None, kappa):
        model = make_net(6, 9, 3)
        before = torch.cat([layer_matrix(m).flatten() for m in linear_layers(model).values()])
        optimizer = BlockTridiagonalKFAC(
            model, lr=lr, kl_clip=clip, fisher="exact", momentum=0.0, likelihood="categorical"
        )
        optimizer.step(make_closure(model, x, y, "categorical"))
        V = torch.cat([layer_gradient(m).flatten() for m in linear_layers(model).values()])
        steps[clip] = before - torch.cat([layer_matrix(m).flatten() for m in linear_layers(model).values()])
    nu = (steps[kappa].norm() / steps[None].norm()).item()
    assert nu < 0.9
    assert lr**2 * nu**2 * (steps[None] / lr @ V).item() == pytest.approx(kappa, rel=1e-9)


def test_factors_and_cross_moments_are_of_the_same_examples():
    """A of the second layer's input and the first's cross-moment share a batch: residual covariances are ⪰ 0."""
    model = make_net(3, 4, 2)
    optimizer = BlockTridiagonalKFAC(model, likelihood="categorical", fisher="mc", statistics_every=1)
    for step in range(5):
        optimizer.step(make_closure(model, *make_batch("categorical", 7, 3, 2, seed=step), "categorical"))
        state = optimizer.state_dict()["extra"]["layers"]["0"]
        for side, number in (("input", 0), ("gradient", 1)):
            own, following = stored_factors(optimizer, "0")[number], stored_factors(optimizer, "2")[number]
            cross = state[f"{side}_cross"]
            joint = torch.cat([torch.cat([own, cross], dim=1), torch.cat([cross.T, following], dim=1)])
            assert torch.linalg.eigvalsh(joint).min() > -1e-14 * joint.norm()


def test_layers_under_autocast_are_near_those_without():
    updates = []
    for autocast in (False, True):
        model = make_net(4, 6, 5, 3).float()
        before = [p.detach().clone() for p in model.parameters()]
        x, y = make_batch("categorical", 12, 4, 3)
        optimizer = BlockTridiagonalKFAC(model, damping=1.0, kl_clip=None, likelihood="categorical", fisher="exact")

        def closure(model=model, x=x, y=y, autocast=autocast):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                output = model(x.float())
                return nn.functional.cross_entropy(output, y), output

        optimizer.step(closure)
        updates.append(torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]).detach())
    assert relative_error(updates[1], updates[0]) < 0.05  # bfloat16 has 8 bits
