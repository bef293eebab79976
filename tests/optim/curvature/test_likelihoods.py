"""Labels drawn from a model whose outputs are of half precision."""

from __future__ import annotations

import pytest
import torch

from kftune.optim.curvature.likelihoods import output_vectors

HALVES = [torch.bfloat16, torch.float16]


def draw(output, likelihood):
    (v,) = output_vectors(output, likelihood, "mc", torch.Generator().manual_seed(0))
    assert v.dtype == output.dtype
    assert v.shape == output.shape
    return v.double()


@pytest.mark.parametrize("dtype", HALVES)
def test_every_one_of_many_classes_is_drawn(dtype):
    n_classes, n = 1000, 20_000
    drawn = torch.bincount(draw(torch.zeros(n, n_classes, dtype=dtype), "categorical").argmin(dim=1))
    expected = n / n_classes
    chi_squared = float((drawn - expected).square().sum() / expected)
    assert len(drawn) == n_classes
    assert abs(chi_squared - (n_classes - 1)) < 5 * (2 * (n_classes - 1)) ** 0.5


@pytest.mark.parametrize("dtype", HALVES)
def test_rare_labels_are_drawn_as_often_as_they_should_be(dtype):
    output = torch.full((200_000, 1), -9.0, dtype=dtype)
    expected = 200_000 * float(torch.sigmoid(torch.tensor(-9.0)))
    n_drawn = int((draw(output, "bernoulli") < 0).sum())
    assert abs(n_drawn - expected) < 5 * expected**0.5


@pytest.mark.parametrize("dtype", HALVES)
def test_normal_labels_have_tails(dtype):
    v = draw(torch.zeros(100_000, 1, dtype=dtype), "gaussian") / 2**0.5
    assert abs(float(v.square().mean()) - 1) < 0.02
    assert 3.5 < float(v.abs().max()) < 6
    share = float((v.abs() > 3).double().mean())
    assert abs(share - 0.0027) < 5 * (0.0027 / 100_000) ** 0.5


LOSSES = {
    "gaussian": torch.nn.functional.mse_loss,
    "bernoulli": torch.nn.functional.binary_cross_entropy_with_logits,
}


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 2), (5, 2, 3)], ids=str)
@pytest.mark.parametrize("likelihood", LOSSES)
def test_exact_vectors_make_the_hessian_of_every_examples_loss(likelihood, shape):
    """By autograd, whatever the output's shape."""
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = (torch.randn(shape, generator=generator) > 0).double()
    vectors = list(output_vectors(output, likelihood, "exact", generator))
    assert all(v.shape == output.shape for v in vectors)
    for n in range(len(output)):
        H = torch.autograd.functional.hessian(
            lambda f, n=n: LOSSES[likelihood](f[None], target[n : n + 1]), output[n]
        ).reshape(output[n].numel(), -1)
        columns = torch.stack([v[n].flatten() for v in vectors], dim=1)
        torch.testing.assert_close(columns @ columns.T, H)


@pytest.mark.parametrize("fisher", ["mc", "exact", "permuted"])
def test_classes_need_a_dimension(fisher):
    with pytest.raises(RuntimeError, match="say 'bernoulli'"):
        next(output_vectors(torch.zeros(4), "categorical", fisher, torch.Generator()))
