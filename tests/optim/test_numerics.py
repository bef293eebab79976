"""The pure parts: outer products, averages, inverses that fail loudly, memory layouts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.errors import CurvatureError
from kftune.optim.checks import check_choice, check_count, check_range
from kftune.optim.curvature.capture import Capture
from kftune.optim.linalg import decompositions as _linalg
from kftune.optim.linalg.decompositions import (
    damped_choleskys,
    damped_inverses,
    eigendecompositions,
    ridged_cholesky,
    solve_between,
)
from kftune.optim.linalg.finite import all_finite
from kftune.optim.linalg.gram import add_gram, add_homogeneous_gram, symmetrize_
from kftune.optim.linalg.products import padded_zeros, product
from kftune.optim.preconditioning.damping import trace_ratio
from kftune.optim.updates.averages import debiased_decay_of, decay_of
from kftune.optim.updates.momentum import momentum_step

D = torch.float64


def positive(d, *, n=None, seed=0, dtype=D):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n or 2 * d, d, generator=g, dtype=D)
    return (x.T @ x / len(x)).to(dtype)


@pytest.mark.parametrize("d", [1, 5, 384, 385, 500])
def test_sums_of_outer_products_of_any_size(d):
    x = torch.randn(7, d, generator=torch.Generator().manual_seed(0), dtype=D)
    total = torch.zeros(d, d, dtype=D)
    add_gram(total, x)
    add_gram(total, 2 * x)
    torch.testing.assert_close(symmetrize_(total), 5 * x.T @ x)


@pytest.mark.parametrize("d", [3, 400])
def test_sums_with_a_homogeneous_coordinate(d):
    x = torch.randn(7, d, generator=torch.Generator().manual_seed(0), dtype=D)
    total = torch.zeros(d + 1, d + 1, dtype=D)
    add_homogeneous_gram(total, x)
    a = torch.cat([x, torch.ones(7, 1, dtype=D)], dim=1)
    torch.testing.assert_close(symmetrize_(total), a.T @ a)


def test_decays():
    assert [decay_of(k, 0.95) for k in (1, 2, 4, 20, 21, 100)] == [0.0, 0.5, 0.75, 0.95, 0.95, 0.95]
    weights = [1.0]
    for k in range(2, 6):
        decay = debiased_decay_of(k, 0.9)
        weights = [w * decay for w in weights] + [1 - decay]
    assert weights == pytest.approx([0.9**age / sum(0.9**i for i in range(5)) for age in (4, 3, 2, 1, 0)])
    assert debiased_decay_of(1, 0.9) == 0.0
    assert debiased_decay_of(3, 0.0) == 0.0


def test_trace_ratio():
    def pi(A, G):
        return trace_ratio(A.diagonal().mean(), G.diagonal().mean()).item()

    A, G = 8 * torch.eye(3, dtype=D), 2 * torch.eye(5, dtype=D)
    assert pi(A, G) == pytest.approx(2.0)
    assert pi(A, 0 * G) == 1.0
    tiny = 1e-30 * torch.eye(2)
    assert pi(1e30 * torch.eye(2), tiny) == pytest.approx(1e30, rel=1e-5)


@pytest.fixture(params=[False, True], ids=["one_by_one", "stacked"])
def stacks(request, monkeypatch):
    """As on a CPU, and as on a GPU."""
    monkeypatch.setattr(_linalg, "_stacks_pay", lambda matrix: request.param)


@pytest.mark.usefixtures("stacks")
def test_damped_inverses():
    matrices = [positive(4), positive(6, n=2), positive(4, seed=1)]
    dampings = [0.1, 2.0, 0.3]
    found = damped_inverses(list("abc"), matrices, [torch.tensor(damping, dtype=D) for damping in dampings])
    for inverse, matrix, damping in zip(found, matrices, dampings, strict=True):
        torch.testing.assert_close(inverse, torch.linalg.inv(matrix + damping * torch.eye(len(matrix), dtype=D)))
    factors = damped_choleskys(list("abc"), matrices, [torch.tensor(damping, dtype=D) for damping in dampings])
    for factor, matrix, damping in zip(factors, matrices, dampings, strict=True):
        torch.testing.assert_close(factor @ factor.T, matrix + damping * torch.eye(len(matrix), dtype=D))


@pytest.mark.usefixtures("stacks")
def test_an_inverse_that_float32_cannot_find_is_found_in_float64():
    """Rank one and a damping below float32's resolution of the entries: rounding makes the matrix indefinite."""
    v = 1 + torch.arange(10) / 8  # products are exact in float32
    matrix, damping = torch.outer(v, v), torch.tensor(1e-7)
    damped = matrix.clone()
    damped.diagonal().add_(damping)
    assert torch.linalg.cholesky_ex(damped).info != 0
    inverse, other = damped_inverses(["factor", "other"], [matrix, torch.eye(10)], [damping, torch.tensor(1.0)])
    torch.testing.assert_close(other, 0.5 * torch.eye(10))
    expected = torch.linalg.inv(matrix.double() + damping.double() * torch.eye(10, dtype=D)).float()
    assert inverse.dtype == torch.float32
    torch.testing.assert_close(inverse, expected, rtol=1e-5, atol=1e-5 / damping.item())


@pytest.mark.usefixtures("stacks")
@pytest.mark.parametrize("entry", [float("nan"), float("inf"), -5.0])
def test_an_impossible_inverse_names_the_layer_and_numbers(entry):
    matrix = torch.eye(3)
    matrix[1, 1] = entry
    with pytest.raises(CurvatureError, match=r"the input covariance of layer 'fc' \(3 × 3, .*\).*damping 0\.1"):
        damped_inverses(["input covariance of layer 'fc'"], [matrix], [torch.tensor(0.1)])


def test_eigendecompositions():
    matrix = positive(5, n=2)
    (eigen,) = eigendecompositions(["factor"], [matrix])
    assert eigen.values.min().item() >= 0
    torch.testing.assert_close(eigen.vectors @ torch.diag(eigen.values) @ eigen.vectors.T, matrix)
    with pytest.raises(CurvatureError, match=r"the factor .* has no eigendecomposition"):
        eigendecompositions(["factor"], [matrix * float("nan")])


@pytest.mark.usefixtures("stacks")
def test_the_ridge_grows_until_there_is_a_factor():
    good, singular = positive(4), -1e-5 * torch.eye(3, dtype=D) + torch.ones(3, 3, dtype=D)
    factors = ridged_cholesky(["good", "singular"], [good, singular], 1e-7)
    torch.testing.assert_close(factors[0] @ factors[0].T, good, atol=2e-7, rtol=0)
    # 1e-5 leaves the matrix singular, or as good as; 1e-4 does not.
    torch.testing.assert_close(factors[1] @ factors[1].T, singular + 1e-4 * torch.eye(3, dtype=D), atol=1e-10, rtol=0)
    with pytest.raises(CurvatureError, match=r"the bad .* has no Cholesky factor"):
        ridged_cholesky(["bad"], [torch.full((2, 2), float("nan"))], 1e-7)


def test_solve_between():
    A, G = positive(5), positive(3, seed=1)
    V = torch.randn(3, 5, dtype=D)
    found = solve_between(torch.linalg.cholesky(G), V, torch.linalg.cholesky(A))
    torch.testing.assert_close(found, torch.linalg.inv(G) @ V @ torch.linalg.inv(A))


def test_all_finite():
    assert all_finite([torch.ones(2), torch.tensor(1.0)])
    assert all_finite([torch.full((2,), 3e38), torch.full((2,), 3e38)])
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not all_finite([torch.ones(2), torch.tensor([1.0, bad])])


def test_momentum_steps_respect_memory_layouts():
    """The fused kernels would pair entries by address."""
    p = nn.Parameter(torch.zeros(2, 3))
    holder = torch.optim.SGD([p], lr=1.0, momentum=0.5, nesterov=False)
    direction = torch.arange(6.0).reshape(3, 2).T
    momentum_step(holder, {p: direction})
    torch.testing.assert_close(p.detach(), -direction)
    momentum_step(holder, {p: direction})
    torch.testing.assert_close(p.detach(), -2.5 * direction)


def test_messages_of_checks():
    with pytest.raises(ValueError, match=r"lr must be in \(0, 1\], got nan"):
        check_range("lr", float("nan"), low_in=False, high=1.0, high_in=True)
    with pytest.raises(ValueError, match=r"kind must be one of a, b, got 'c'"):
        check_choice("kind", "c", ("a", "b"))
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"n must be a whole number of at least 1, got {wrong}"):
            check_count("n", wrong)


def test_hooks_report_only_while_recording_and_go_with_the_capture():
    model = nn.Linear(2, 2)
    capture, seen = Capture({"fc": model}), []
    x = torch.ones(1, 2)
    model(x)
    with capture.recording(lambda name, a, s: seen.append(name)):
        model(x)
        with torch.no_grad():
            model(x)
    model(x)
    assert seen == ["fc"]
    assert len(model._forward_hooks) == 1
    del capture
    assert not model._forward_hooks


@pytest.mark.parametrize(("columns", "stride"), [(3, 3), (255, 255), (256, 256), (257, 264), (264, 264)])
def test_products_with_rows_on_cache_lines(columns, stride):
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(5, 7, generator=g, dtype=D), torch.randn(7, columns, generator=g, dtype=D)
    found = product(left, right)
    torch.testing.assert_close(found, left @ right)
    assert found.stride() == (stride, 1)
    zeros = padded_zeros(5, columns, like=left)
    assert zeros.stride() == (stride, 1)
    assert torch.equal(zeros, torch.zeros(5, columns, dtype=D))


@pytest.mark.parametrize("d", [1, 127, 512, 513, 641])
def test_the_lower_triangle_becomes_the_upper_one(d):
    matrix = torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=D)
    expected = matrix.tril() + matrix.tril(-1).T
    assert torch.equal(symmetrize_(matrix), expected)
