"""CG-FAC against dense curvature and dense solves."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kftune.errors import CurvatureError
from kftune.optim import KFAC
from kftune.optim.curvature.kronecker_rows import KroneckerRows
from kftune.optim.curvature.rows import Rows
from kftune.optim.curvature.rows_or_gram import RowsOrGram
from kftune.optim.linalg.conjugate_gradients import conjugate_gradients
from kftune.optim.methods.cg_fac import CGFAC
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net, relative_error
from tests.optim._dense_fisher import (
    Pooled,
    Sequence,
    block_diagonal,
    damped_solve,
    example_gradients,
    fisher,
    flat_gradient,
    flat_parameters,
    images,
    sequences,
)

EXACT = 1e-10  # relative, float64
PLAIN = {"lr": 1.0, "momentum": 0.0, "kl_clip": None}
SOLVED = {**PLAIN, "cg_iterations": 300, "cg_tolerance": 1e-13}


def step(optimizer, model, x, y, likelihood="categorical", *, split=None):
    """(change of the parameters, mean gradient) of one update."""
    before = flat_parameters(model)
    for part in zip(x.split(split or len(x)), y.split(split or len(y)), strict=True):
        optimizer.accumulate(make_closure(model, *part, likelihood))
    optimizer.step()
    return before - flat_parameters(model), flat_gradient(model)


def operator_matrix(product, d_G, d_A):
    """The matrix that a product with (d_G, d_A) is, over row-major vec."""
    units = torch.eye(d_G * d_A, dtype=DTYPE).view(-1, d_G, d_A)
    return torch.stack([product(unit).flatten() for unit in units], dim=1)


def curvature(model, x, y, **settings):
    """Layer → dense matrix of what the optimizer multiplies with, after an update on the batch."""
    optimizer = CGFAC(model, **(PLAIN | {"lr": 0.0}), likelihood="categorical", **settings)
    step(optimizer, model, x, y)
    return {
        name: operator_matrix(optimizer._fisher_products[name], layer.d_G, layer.d_A)
        for name, layer in optimizer._layers.items()
    }


@pytest.mark.parametrize("kind", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("network", ["perceptron", "images", "sequences"])
def test_the_fisher_operator_is_the_dense_block(network, kind):
    model = {"perceptron": make_net(4, 6, 3), "images": Pooled(), "sequences": Sequence()}[network]
    x, y = {"perceptron": make_batch("categorical", 9, 4, 3), "images": images(7), "sequences": sequences(7)}[network]
    F = fisher(model, x, y, "categorical", kind, seed=2)
    found = curvature(model, x, y, fisher=kind, seed=2)
    assert relative_error(torch.block_diag(*found.values()), block_diagonal(model, F)) < EXACT


def kfac_factors(model, x, y, **settings):
    """Layer → G ⊗ A, which is A ⊗ G of row-major vec, from K-FAC's covariances."""
    optimizer = KFAC(model, lr=0.0, likelihood="categorical", **settings)
    optimizer.step(make_closure(model, x, y, "categorical"))
    layers = optimizer.state_dict()["extra"]["layers"]
    return {name: torch.kron(state["gradient_covariance"], state["input_covariance"]) for name, state in layers.items()}


@pytest.mark.parametrize("kind", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("n", [2, 40])
def test_the_kronecker_operator_is_k_facs_block(n, sharing, kind):
    """2 examples stay rows, 40 become matrices."""
    for model, batch in ((make_net(8, 6, 3), make_batch("categorical", n, 8, 3)), (Pooled(), images(n))):
        settings = {"fisher": kind, "weight_sharing": sharing, "seed": 2}
        found = curvature(model, *batch, operator="kronecker", **settings)
        for name, expected in kfac_factors(model, *batch, **settings).items():
            assert relative_error(found[name], expected) < EXACT


def test_the_operators_agree_for_one_example_and_no_more():
    model = make_net(4, 6, 3)
    for n, agree in ((1, True), (2, False), (9, False)):
        x, y = make_batch("categorical", n, 4, 3)
        found, other = (curvature(model, x, y, operator=o, fisher="empirical") for o in ("fisher", "kronecker"))
        for name, matrix in found.items():
            error = relative_error(other[name], matrix)
            assert error < EXACT if agree else error > 0.1


@pytest.mark.parametrize("kind", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_the_update_is_the_dense_block_diagonal_solve(likelihood, kind):
    model = make_net(4, 6, 5, 3)
    optimizer = CGFAC(model, damping=0.03, fisher=kind, likelihood=likelihood, seed=3, weight_decay=0.1, **SOLVED)
    x, y = make_batch(likelihood, 9, 4, 3)
    F = block_diagonal(model, fisher(model, x, y, likelihood, kind, seed=3))
    decay = 0.1 * flat_parameters(model)
    found, V = step(optimizer, model, x, y, likelihood)
    assert relative_error(found, damped_solve(F, 0.03 + 0.1, V + decay)) < EXACT


@pytest.mark.parametrize("kind", ["mc", "exact"])
@pytest.mark.parametrize("network", ["images", "sequences"])
def test_the_update_with_positions_is_the_dense_solve(network, kind):
    model = Pooled() if network == "images" else Sequence()
    x, y = images(7) if network == "images" else sequences(7)
    F = block_diagonal(model, fisher(model, x, y, "categorical", kind, seed=3))
    optimizer = CGFAC(model, damping=0.03, fisher=kind, likelihood="categorical", seed=3, **SOLVED)
    found, V = step(optimizer, model, x, y)
    assert relative_error(found, damped_solve(F, 0.03, V)) < EXACT


@pytest.mark.parametrize("operator", ["fisher", "kronecker"])
def test_micro_batches_and_a_warm_start(operator):
    found = []
    for split in (None, 4):
        model = Pooled()
        optimizer = CGFAC(
            model, operator=operator, fisher="exact", cg_iterations=3, cg_tolerance=0.0, likelihood="categorical"
        )
        for k in range(3):
            change, _ = step(optimizer, model, *images(9, seed=k), split=split)
        found.append(change)
    assert relative_error(found[1], found[0]) < 1e-9  # three iterations of three updates: observed 5e-15


def test_a_warm_start_gets_nearer_in_as_many_iterations():
    errors = {}
    for warm in (True, False):
        model = make_net(4, 6, 3)
        batch = make_batch("categorical", 9, 4, 3)
        settings = PLAIN | {"lr": 1e-6}  # so that the system stays what it was
        optimizer = CGFAC(
            model, damping=1e-3, fisher="exact", cg_iterations=2, warm_start=warm, likelihood="categorical", **settings
        )
        F = block_diagonal(model, fisher(model, *batch, "categorical", "exact"))
        for _ in range(20):
            change, V = step(optimizer, model, *batch)
        errors[warm] = relative_error(change / 1e-6, damped_solve(F, 1e-3, V))
    assert errors[True] < 0.5 * errors[False]


# The iteration alone.


def low_rank_system(n=6, d=20, damping=0.1, seed=0):
    """(matrix, its operator, the n gradients that make it)."""
    J = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    matrix = J.T @ J / n + damping * torch.eye(d, dtype=DTYPE)
    return matrix, lambda x: matrix @ x, J


def run(operator, target, start=None, *, iterations=100, tolerance=0.0):
    found = conjugate_gradients(["0"], [operator], [target], [start], iterations=iterations, tolerance=tolerance)
    return found.X[0], found.iterations[0]


def test_it_ends_at_the_rank_of_the_batch():
    """N iterations for the batch's own gradient, one more for any other."""
    matrix, operator, J = low_rank_system(n=6)
    other = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    for target, enough in ((J.mean(dim=0) + J[0], 6), (other, 7)):
        expected = torch.linalg.solve(matrix, target)
        assert relative_error(run(operator, target, iterations=enough)[0], expected) < EXACT
        assert relative_error(run(operator, target, iterations=enough - 1)[0], expected) > 1e-4


def test_it_ends_at_the_rank_of_a_networks_batch():
    model = make_net(4, 6, 3)
    x, y = make_batch("categorical", 5, 4, 3)
    F = block_diagonal(model, fisher(model, x, y, "categorical", "empirical"))
    V = example_gradients(model, x, y, "categorical").mean(dim=0)
    errors = {}
    for iterations in (4, 5):
        twin = make_net(4, 6, 3)
        optimizer = CGFAC(
            twin,
            damping=0.03,
            fisher="empirical",
            cg_iterations=iterations,
            cg_tolerance=0.0,
            likelihood="categorical",
            **PLAIN,
        )
        errors[iterations] = relative_error(step(optimizer, twin, x, y)[0], damped_solve(F, 0.03, V))
    assert errors[5] < EXACT
    assert errors[4] > 1e-6


@pytest.mark.parametrize("multiple", [1.0, 3.0, -0.5])
def test_a_multiple_of_the_solution_takes_no_iteration(multiple):
    matrix, operator, J = low_rank_system()
    solution = torch.linalg.solve(matrix, J[0])
    found, iterations = run(operator, J[0], multiple * solution, tolerance=1e-10)
    assert iterations == 0
    assert relative_error(found, solution) < EXACT
    assert run(operator, J[0], tolerance=1e-10)[1] > 0


def test_a_useless_start_is_no_worse_than_zero():
    matrix, operator, J = low_rank_system(n=6)
    expected = torch.linalg.solve(matrix, J[0])
    orthogonal = torch.linalg.svd(J).Vh[-1]
    for start in (orthogonal, torch.zeros_like(orthogonal)):
        assert torch.allclose(run(operator, J[0], start, iterations=3)[0], run(operator, J[0], iterations=3)[0])
    far = 1e6 * torch.randn(20, generator=torch.Generator().manual_seed(3), dtype=DTYPE)
    assert relative_error(run(operator, J[0], far, iterations=8)[0], expected) < EXACT


@pytest.mark.parametrize("started", [True, False])
def test_the_error_falls_in_the_norm_of_the_matrix(started):
    matrix, operator, J = low_rank_system(n=12, damping=1e-3)
    target = J.sum(dim=0) + torch.ones(20, dtype=DTYPE)
    expected = torch.linalg.solve(matrix, target)
    start = torch.ones(20, dtype=DTYPE) if started else None
    errors = []
    for iterations in range(1, 12):
        error = run(operator, target, start, iterations=iterations)[0] - expected
        errors.append((error @ matrix @ error).item())
    zero = expected @ matrix @ expected
    assert errors[0] < zero
    assert all(later < earlier for earlier, later in pairwise(errors))


def test_systems_advance_together_but_do_not_meet():
    """Of different shapes; each stops when its own residual says so, as it would alone."""
    systems = [low_rank_system(n=n, d=d, seed=n) for n, d in ((2, 12), (9, 20), (5, 6))]
    targets = [matrix.sum(dim=1) for matrix, _, _ in systems]
    targets.insert(1, torch.zeros(4, dtype=DTYPE))
    operators = [operator for _, operator, _ in systems]
    operators.insert(1, lambda x: x)
    found = conjugate_gradients("abcd", operators, targets, [None] * 4, iterations=50, tolerance=1e-8)
    for k, target in enumerate(targets):
        alone, iterations = run(operators[k], target, tolerance=1e-8)
        assert torch.equal(found.X[k], alone)
        assert found.iterations[k] == iterations
        assert (target - operators[k](alone)).norm() <= 1e-8 * target.norm()
    assert found.iterations[1] == 0
    assert len(set(found.iterations)) > 2


def test_the_tolerance_is_on_the_relative_residual():
    _, operator, J = low_rank_system(n=12, damping=1e-3)
    target = 1e-7 * J.sum(dim=0)
    for tolerance in (1e-1, 1e-3, 1e-6):
        found, iterations = run(operator, target, tolerance=tolerance)
        before, _ = run(operator, target, iterations=iterations - 1)
        assert (target - operator(found)).norm() <= tolerance * target.norm()
        assert (target - operator(before)).norm() > tolerance * target.norm()


def test_a_direction_without_curvature_ends_the_search():
    matrix = torch.diag(torch.tensor([2.0, -1.0, 1.0], dtype=DTYPE))
    target = torch.tensor([1.0, 1.0, 0.0], dtype=DTYPE)
    found, iterations = run(lambda x: matrix @ x, target)
    assert torch.isfinite(found).all()
    assert iterations <= 2
    found, _ = run(lambda x: 0 * x, target, target)
    assert torch.equal(found, torch.zeros_like(target))


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_products_that_are_not_finite_are_an_error(value, iterations):
    target = torch.ones(3, dtype=DTYPE)
    with pytest.raises(CurvatureError, match="curvature of layer 'bad' are not finite"):
        conjugate_gradients(
            ["good", "bad"],
            [lambda x: x * torch.arange(1.0, 4.0, dtype=DTYPE), lambda x: x * value],
            [target, target],
            [None, None],
            iterations=iterations,
            tolerance=0.0,
        )


# Rows or matrices.


def test_rows_are_kept_only_as_long_as_they_are_fewer():
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    found = RowsOrGram()
    for start, n_matrices in ((0, 2), (2, 2), (4, 1), (6, 1)):
        found.add(rows[start : start + 2])
        chain = found.chain()
        assert len(chain) == n_matrices
        expected = rows[: start + 2].T @ rows[: start + 2]
        assert relative_error(chain[0] @ chain[1] if n_matrices == 2 else chain[0], expected) < EXACT


def test_inputs_count_once_for_several_directions():
    g = torch.Generator().manual_seed(0)
    a = torch.randn(3, 1, 4, generator=g, dtype=DTYPE)
    e = [torch.randn(3, 1, 2, generator=g, dtype=DTYPE) for _ in range(2)]
    found = KroneckerRows("expand")
    for _ in range(2):  # the same micro-batch twice
        found.begin_batch()
        for direction in e:
            found.add({"layer": Rows(a, direction, ())})
    X = torch.randn(2, 4, generator=g, dtype=DTYPE)
    expected = sum(d[:, 0].T @ d[:, 0] for d in e) / 3 @ X @ (a[:, 0].T @ a[:, 0] / 3)
    assert relative_error(found.result()["layer"].fisher_product(X), expected) < EXACT


@pytest.mark.parametrize("operator", ["fisher", "kronecker"])
def test_a_micro_batch_may_be_overwritten_by_the_next(operator):
    """Without a bias, the first layer's rows are the micro-batch itself; there are fewer of them than columns."""
    found = []
    for overwritten in (False, True):
        model, place = make_net(9, 5, 3, bias=False), torch.empty(2, 9, dtype=DTYPE)
        optimizer = CGFAC(model, operator=operator, fisher="empirical", likelihood="categorical", **SOLVED)
        for seed in range(3):
            x, y = make_batch("categorical", 2, 9, 3, seed=seed)
            optimizer.accumulate(make_closure(model, place.copy_(x) if overwritten else x, y, "categorical"))
        optimizer.step()
        found.append(flat_parameters(model))
    assert torch.equal(found[1], found[0])
