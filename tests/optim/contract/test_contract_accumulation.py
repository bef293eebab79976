"""What every registered optimizer shows between accumulate() and step(): the mean gradient so far."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from kftune.optim import OPTIMIZERS, SGD
from kftune.optim.own.torch_optimizer import TorchOptimizer
from tests.optim._contract import build, every, network, parameters
from tests.optim._dense import DTYPE, make_batch, make_closure

SPLITS = [(24,), (6, 6, 6, 6), (3, 21), (21, 3)]
splits = pytest.mark.parametrize("split", SPLITS, ids=str)


def mean_gradients(model, x, y):
    """By autograd alone."""
    return torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))


@every
@splits
def test_the_gradient_is_the_mean_so_far_at_any_moment(entry, split):
    model = network()
    optimizer = build(entry, model)
    x, y = make_batch("categorical", 24, 6, 3)
    done = 0
    for n in split:
        own = slice(done, done + n)
        optimizer.accumulate(make_closure(model, x[own], y[own], "categorical"))
        done += n
        for p, expected in zip(model.parameters(), mean_gradients(model, x[:done], y[:done]), strict=True):
            torch.testing.assert_close(p.grad, expected)
    optimizer.step()


@every
def test_a_gradient_clipped_before_the_step_is_the_one_that_is_taken(entry):
    """To 0.1 in norm, as users write it: the same update, however the examples are split."""
    x, y = make_batch("categorical", 24, 6, 3)
    after = []
    for split in SPLITS:
        model = network()
        optimizer = build(entry, model, **entry.deterministic)
        for own in zip(x.split(split), y.split(split), strict=True):
            optimizer.accumulate(make_closure(model, *own, "categorical"))
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        after.append(parameters(model))
    for found in after[1:]:
        for own, expected in zip(found, after[0], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-8)


def test_the_clipped_update_has_the_clips_length():
    model = network()
    optimizer = SGD(model, lr=1.0, momentum=0.0, nesterov=False)
    before = parameters(model)
    x, y = make_batch("categorical", 24, 6, 3)
    for own in zip(x.split(8), y.split(8), strict=True):
        optimizer.accumulate(make_closure(model, *own, "categorical"))
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    change = torch.cat([(a - b).flatten() for a, b in zip(parameters(model), before, strict=True)])
    assert change.norm().item() == pytest.approx(0.1, rel=1e-4)  # torch adds 1e-6 to the norm


def _of_labels(entry):
    return next((name for name in ("fisher", "labels") if name in inspect.signature(entry.cls).parameters), None)


@pytest.mark.parametrize("entry", [e for e in OPTIMIZERS if _of_labels(e)], ids=lambda entry: entry.name)
@splits
def test_the_empirical_fisher_is_that_of_the_union(entry, split):
    """It is made of the loss' own gradients, which every micro-batch gives in a scale of its own."""
    options = {**entry.deterministic, _of_labels(entry): "empirical"}
    if "variant" in inspect.signature(entry.cls).parameters:
        options["variant"] = "kfac_norm"
    models = [network(), network()]
    whole, parted = (build(entry, model, **options) for model in models)
    for step in range(3):
        x, y = make_batch("categorical", 24, 6, 3, seed=step)
        whole.step(make_closure(models[0], x, y, "categorical"))
        for own in zip(x.split(split), y.split(split), strict=True):
            parted.accumulate(make_closure(models[1], *own, "categorical"))
        parted.step()
    for found, expected in zip(*map(parameters, models), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_sparse_gradients_are_means_too():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3)).to(DTYPE)
    optimizer = SGD(model, lr=0.1)
    tokens, y = torch.tensor([0, 1, 1, 2, 0, 3, 4, 1]), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    for own in zip(tokens.split((2, 5, 1)), y.split((2, 5, 1)), strict=True):
        optimizer.accumulate(make_closure(model, *own, "categorical"))
    expected, _, _ = mean_gradients(model, tokens, y)
    found = model[0].weight.grad
    torch.testing.assert_close(found.to_dense() if found.is_sparse else found, expected.to_dense())


def test_parameters_that_a_wrapped_optimizer_leaves_out_have_means_too():
    model = network()
    optimizer = TorchOptimizer(model, torch.optim.SGD(model[2].parameters(), lr=0.1))
    x, y = make_batch("categorical", 24, 6, 3)
    for own in zip(x.split((4, 20)), y.split((4, 20)), strict=True):
        optimizer.accumulate(make_closure(model, *own, "categorical"))
    for p, expected in zip(model.parameters(), mean_gradients(model, x, y), strict=True):
        torch.testing.assert_close(p.grad, expected)
