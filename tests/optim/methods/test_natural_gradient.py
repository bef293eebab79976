"""Natural gradients against dense solves with dense Fishers."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest
import torch
from torch import nn

from kftune.errors import CurvatureError
from kftune.optim.curvature import example_gradients as module
from kftune.optim.curvature.example_gradients import FactoredGradients, WrittenGradients, concatenate, from_tensors
from kftune.optim.methods.natural_gradient import NaturalGradient
from kftune.optim.preconditioning.woodbury import factorize, solve
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net, relative_error
from tests.optim._dense_fisher import (
    Pooled,
    Sequence,
    block_diagonal,
    damped_solve,
    fisher,
    flat_gradient,
    flat_parameters,
    ggn,
    images,
    sequences,
)

EXACT = 1e-10  # relative, float64; observed at most 2e-14
PLAIN = {"lr": 1.0, "momentum": 0.0, "kl_clip": None}


def step(optimizer, model, x, y, likelihood="categorical", *, split=None):
    """(change of the parameters, mean gradient) of one update."""
    before = flat_parameters(model)
    for part in zip(x.split(split or len(x)), y.split(split or len(y)), strict=True):
        optimizer.accumulate(make_closure(model, *part, likelihood))
    optimizer.step()
    return before - flat_parameters(model), flat_gradient(model)


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("kind", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_the_update_is_the_dense_solve(likelihood, kind, block):
    model = make_net(4, 6, 5, 3)
    x, y = make_batch(likelihood, 9, 4, 3)
    F = fisher(model, x, y, likelihood, kind, seed=3)
    other = F if block else block_diagonal(model, F)
    F = block_diagonal(model, F) if block else F
    optimizer = NaturalGradient(
        model, damping=0.03, fisher=kind, block_diagonal=block, likelihood=likelihood, seed=3, **PLAIN
    )
    found, V = step(optimizer, model, x, y, likelihood)
    assert relative_error(found, damped_solve(F, 0.03, V)) < EXACT
    assert relative_error(found, damped_solve(other, 0.03, V)) > 1e-2


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("kind", ["mc", "exact", "empirical"])
@pytest.mark.parametrize("network", ["images", "sequences"])
def test_positions_and_groups_and_repeated_use(network, kind, block):
    model = Pooled() if network == "images" else Sequence()
    x, y = images(7) if network == "images" else sequences(7)
    F = fisher(model, x, y, "categorical", kind, seed=5)
    F = block_diagonal(model, F) if block else F
    optimizer = NaturalGradient(
        model, damping=0.02, fisher=kind, block_diagonal=block, likelihood="categorical", seed=5, **PLAIN
    )
    found, V = step(optimizer, model, x, y)
    assert relative_error(found, damped_solve(F, 0.02, V)) < EXACT


def columns(optimizer):
    """(C·N, all parameters) what the Fisher is made of, from the saved state."""
    layers = optimizer.state_dict()["extra"]["layers"].values()
    return torch.cat([from_tensors(state).written_out().matrices.flatten(2).flatten(0, 1) for state in layers], dim=1)


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_columns_of_the_exact_fisher_make_the_ggn(likelihood):
    model = make_net(4, 6, 3)
    x, y = make_batch(likelihood, 9, 4, 3)
    expected = ggn(model, x, y, likelihood)
    optimizer = NaturalGradient(model, fisher="exact", likelihood=likelihood)
    step(optimizer, model, x, y, likelihood)
    J = columns(optimizer)
    assert relative_error(J.T @ J / len(x), expected) < EXACT


def test_columns_of_sequences_make_the_ggn():
    model = Sequence()
    x, y = sequences(6)
    expected = ggn(model, x, y, "categorical")
    optimizer = NaturalGradient(model, fisher="exact", likelihood="categorical")
    step(optimizer, model, x, y)
    J = columns(optimizer)
    assert relative_error(J.T @ J / len(x), expected) < EXACT


@pytest.mark.parametrize("block", [False, True])
def test_between_renewals_the_old_fisher_is_used(block):
    model = make_net(4, 6, 3)
    optimizer = NaturalGradient(
        model, damping=0.1, fisher="exact", inverses_every=3, block_diagonal=block, likelihood="categorical", **PLAIN
    )
    for k in range(5):
        x, y = make_batch("categorical", 9, 4, 3, seed=k)
        if k % 3 == 0:
            F = ggn(model, x, y, "categorical")
            F = block_diagonal(model, F) if block else F
        now = ggn(model, x, y, "categorical")
        found, V = step(optimizer, model, x, y)
        assert relative_error(found, damped_solve(F, 0.1, V)) < EXACT
        assert k % 3 == 0 or relative_error(found, damped_solve(now, 0.1, V)) > 1e-2


@pytest.mark.parametrize("block", [False, True])
def test_a_saved_fisher_goes_on_bit_for_bit(block):
    def build(model):
        return NaturalGradient(model, inverses_every=4, block_diagonal=block, likelihood="categorical")

    model, other = Pooled(), Pooled()
    optimizer = build(model)
    for k in range(2):
        step(optimizer, model, *images(6, seed=k))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(model.state_dict())
    resumed = build(other)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for k in range(2, 6):
        found, _ = step(resumed, other, *images(6, seed=k))
        assert torch.equal(found, step(optimizer, model, *images(6, seed=k))[0])


@pytest.mark.parametrize("n", [1, 5, 9, 100])
def test_the_fisher_of_the_first_examples(n):
    model = make_net(4, 6, 3)
    x, y = make_batch("categorical", 9, 4, 3)
    F = ggn(model, x[:n], y[:n], "categorical")
    optimizer = NaturalGradient(
        model, damping=0.03, fisher="exact", fisher_examples=n, likelihood="categorical", **PLAIN
    )
    found, V = step(optimizer, model, x, y)
    assert relative_error(found, damped_solve(F, 0.03, V)) < EXACT


@pytest.mark.parametrize("n", [None, 5])
@pytest.mark.parametrize("split", [3, 4, 6])
@pytest.mark.parametrize("network", ["images", "sequences"])
def test_micro_batches_make_the_fisher_of_their_union(network, split, n):
    found = []
    for size in (None, split):
        model = Pooled() if network == "images" else Sequence()
        optimizer = NaturalGradient(
            model, damping=0.02, fisher="exact", fisher_examples=n, likelihood="categorical", **PLAIN
        )
        found.append(step(optimizer, model, *(images(9) if network == "images" else sequences(9)), split=size)[0])
    assert relative_error(found[1], found[0]) < EXACT


def test_micro_batches_of_sequences_of_unlike_length():
    model = Sequence()
    batches = [sequences(4, 5), sequences(3, 2, seed=1)]
    F = sum(len(x) * ggn(model, x, y, "categorical") for x, y in batches) / 7
    before = flat_parameters(model)
    optimizer = NaturalGradient(model, damping=0.02, fisher="exact", likelihood="categorical", **PLAIN)
    for batch in batches:
        optimizer.accumulate(make_closure(model, *batch, "categorical"))
    optimizer.step()
    assert relative_error(before - flat_parameters(model), damped_solve(F, 0.02, flat_gradient(model))) < EXACT


class Gated(nn.Module):
    """Uses one of its layers only where it is told to."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = (nn.Linear(4, d, dtype=DTYPE) for d in (4, 4, 3))
        self.deep = True

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.second(h)) if self.deep else h)


@pytest.mark.parametrize("order", [(True, False), (False, True)])
def test_a_layer_that_some_examples_did_not_pass(order):
    model = Gated()
    optimizer = NaturalGradient(model, damping=0.02, fisher="exact", likelihood="categorical", **PLAIN)
    before, total = flat_parameters(model), 0
    for k, deep in enumerate(order):
        model.deep = deep
        x, y = make_batch("categorical", 6, 4, 3, seed=k)
        total = total + ggn(model, x, y, "categorical") / 2
        optimizer.accumulate(make_closure(model, x, y, "categorical"))
    optimizer.step()
    assert relative_error(before - flat_parameters(model), damped_solve(total, 0.02, flat_gradient(model))) < EXACT


def test_a_large_damping_leaves_the_direction_of_the_gradient():
    errors = []
    for damping in (1e2, 1e4, 1e6):
        model = make_net(4, 6, 3)
        optimizer = NaturalGradient(model, damping=damping, likelihood="categorical", **(PLAIN | {"lr": damping}))
        found, V = step(optimizer, model, *make_batch("categorical", 9, 4, 3))
        errors.append(relative_error(found, V))
    assert errors[0] < 0.05
    # The distance falls as 1/damping, up to the difference that is taken of the parameters here.
    assert errors[1] / errors[0] == pytest.approx(1e-2, rel=0.05)
    assert errors[2] / errors[1] == pytest.approx(1e-2, rel=0.05)


def test_groups_with_dampings_of_their_own():
    model = make_net(4, 6, 3)
    x, y = make_batch("categorical", 9, 4, 3)
    F = ggn(model, x, y, "categorical")
    optimizer = NaturalGradient(model, damping=0.3, fisher="exact", likelihood="categorical", **PLAIN)
    (group,) = optimizer.param_groups
    second = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    params, names = group["params"], group["param_names"]
    group["params"], group["param_names"] = params[:2], names[:2]
    optimizer.add_param_group({**second, "params": list(zip(names[2:], params[2:], strict=True)), "damping": 0.01})
    dampings = torch.tensor([0.3] * 30 + [0.01] * 21, dtype=DTYPE)
    found, V = step(optimizer, model, x, y)
    assert relative_error(found, torch.linalg.solve(F + torch.diag(dampings), V)) < EXACT


# Pure numerics.


def factored(c=2, n=5, t=3, d_A=4, d_G=6, dtype=DTYPE, seed=0):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, t, d_A, generator=g, dtype=dtype)
    return FactoredGradients(inputs, torch.randn(c, n, t, d_G, generator=g, dtype=dtype))


@pytest.mark.parametrize("chunk", [1, 200, 2**22])
@pytest.mark.parametrize(("c", "t", "d_A", "d_G"), [(1, 1, 4, 6), (1, 3, 6, 4), (3, 1, 4, 6), (2, 4, 5, 3)])
def test_factors_and_matrices_give_the_same_numbers(monkeypatch, c, t, d_A, d_G, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    kept = factored(c=c, t=t, d_A=d_A, d_G=d_G)
    J = torch.einsum("cntg,nta->cnga", kept.gradients, kept.inputs)
    rows = J.reshape(c * 5, -1)
    X, q = torch.randn(d_G, d_A, dtype=DTYPE), torch.randn(c * 5, dtype=DTYPE)
    for form in (kept, kept.written_out(), WrittenGradients(J)):
        assert relative_error(form.products(X), rows @ X.flatten()) < EXACT
        assert relative_error(form.combination(q), (q @ rows).view(d_G, d_A)) < EXACT
        assert relative_error(form.gram(), rows @ rows.T) < EXACT
    assert relative_error(kept._gram_by_positions(), rows @ rows.T) < EXACT
    assert relative_error(kept._gram_by_matrices(), rows @ rows.T) < EXACT


def test_concatenating_both_forms():
    parts = [factored(t=3), factored(t=1, seed=1)]
    expected = torch.cat([part.written_out().matrices for part in parts], dim=1)
    for mixed in (parts, [parts[0], parts[1].written_out()]):
        assert relative_error(concatenate(mixed).written_out().matrices, expected) < EXACT


def test_float32_falls_back_to_inner_products_in_float64():
    once = factored(c=1, n=30, t=1, dtype=torch.float32)  # rank 24 at most
    system = {"layer": (once, torch.tensor(1e-9))}
    (factor,) = factorize(["layer"], [system])
    assert factor.dtype == torch.float64
    U = torch.randn(6, 4)
    found = solve(system, factor, {"layer": U})["layer"]
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    (factor,) = factorize(["layer"], [{"layer": (once, torch.tensor(1.0))}])
    assert factor.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_that_are_not_finite_are_an_error(dtype):
    bad = factored(dtype=dtype)
    bad.gradients[0, 0, 0, 0] = float("nan")
    with pytest.raises(CurvatureError, match="the gradient products of 'a' "):
        factorize(["gradient products of 'a'"], [{"a": (bad, torch.tensor(1.0, dtype=dtype))}])


def test_labels_are_drawn_only_for_renewals():
    model = make_net(4, 6, 3)
    optimizer = NaturalGradient(model, inverses_every=3, likelihood="categorical")
    states = []
    for k in range(4):
        step(optimizer, model, *make_batch("categorical", 9, 4, 3, seed=k))
        states.append(optimizer.state_dict()["extra"]["random"]["state"])
    assert [torch.equal(a, b) for a, b in pairwise(states)] == [True, True, False]


@pytest.mark.parametrize("fisher_examples", [None, 5])
def test_a_batch_may_be_overwritten_by_the_next(fisher_examples):
    """Without a bias, the first layer's rows are the batch itself."""
    found = []
    for overwritten in (False, True):
        model, place = make_net(4, 6, 3, bias=False), torch.empty(9, 4, dtype=DTYPE)
        settings = {"inverses_every": 3, "fisher_examples": fisher_examples, "fisher": "empirical"}
        optimizer = NaturalGradient(model, damping=0.1, likelihood="categorical", **PLAIN, **settings)
        for seed in range(3):
            x, y = make_batch("categorical", 9, 4, 3, seed=seed)
            optimizer.step(make_closure(model, place.copy_(x) if overwritten else x, y, "categorical"))
        found.append(flat_parameters(model))
    assert torch.equal(found[1], found[0])
