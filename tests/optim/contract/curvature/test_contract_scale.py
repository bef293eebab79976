"""One scale for all kinds of Fisher: for a calibrated model they agree in expectation."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch
from torch import nn

from kftune.optim import KFAC, OPTIMIZERS, ThesisKFAC
from kftune.optim.curvature.likelihoods import output_vectors
from tests.optim._contract import build, parameters
from tests.optim._dense import DTYPE, make_batch, make_net, relative_error, stored_factors

WITH_FISHER = [e for e in OPTIMIZERS if "fisher" in inspect.signature(e.cls).parameters and "alpha" not in e.readings]


class Shaped(nn.Module):
    """One network whose outputs have any shape."""

    def __init__(self, *shape):
        super().__init__()
        self.net, self.shape = make_net(4, 5, math.prod(shape)), shape

    def forward(self, x):
        return self.net(x).view(len(x), *self.shape)


def cross_entropy(output, target):
    """Of classes in the last dimension."""
    return nn.functional.cross_entropy(output.flatten(0, -2), target.flatten())


def categorical_labels(output):
    """(label, its probability) for every way to label all positions of the only example."""
    p = torch.softmax(output.detach(), dim=-1).view(-1, output.shape[-1])
    for chosen in itertools.product(range(p.shape[1]), repeat=len(p)):
        label = torch.tensor(chosen)
        yield label.view(output.shape[:-1]), p[torch.arange(len(p)), label].prod()


def bernoulli_labels(output):
    p = torch.sigmoid(output.detach())
    for chosen in itertools.product((0.0, 1.0), repeat=output.numel()):
        label = torch.tensor(chosen, dtype=DTYPE).view_as(p)
        yield label, torch.where(label > 0, p, 1 - p).prod()


def gaussian_labels(output):
    """Points with the mean and the covariance of N(f, (O/2)·I), whose negative log-likelihood the mean square is."""
    n = output.numel()
    for o, sign in itertools.product(range(n), (-1, 1)):
        e = torch.zeros(n, dtype=DTYPE)
        e[o] = sign * math.sqrt(n * n / 2)
        yield output.detach() + e.view_as(output), torch.tensor(1 / (2 * n), dtype=DTYPE)


LIKELIHOODS = {
    "categorical": (cross_entropy, categorical_labels, [(3,), (1, 3), (3, 2), (2, 2, 2)]),
    "bernoulli": (nn.functional.binary_cross_entropy_with_logits, bernoulli_labels, [(), (1,), (4,), (2, 3)]),
    "gaussian": (nn.functional.mse_loss, gaussian_labels, [(), (1,), (4,), (2, 3)]),
}
CASES = [(likelihood, shape) for likelihood, (_, _, shapes) in LIKELIHOODS.items() for shape in shapes]


def factors(model, x, label, likelihood, fisher, parts=1):
    loss = LIKELIHOODS[likelihood][0]
    optimizer = KFAC(model, lr=0.0, likelihood=likelihood, fisher=fisher)

    def closure():
        output = model(x)
        return loss(output, label), output

    for _ in range(parts):
        optimizer.accumulate(closure)
    optimizer.step()
    return {name: stored_factors(optimizer, name)[1] for name in ("net.0", "net.2")}


@pytest.mark.parametrize(("likelihood", "shape"), CASES, ids=str)
def test_the_expected_empirical_fisher_is_the_exact_one(likelihood, shape):
    """Over all labels of one example, weighted with their probabilities under the model: no sampling."""
    model = Shaped(*shape)
    x = make_batch("gaussian", 1, 4, 1)[0]
    labels = list(LIKELIHOODS[likelihood][1](model(x)))
    assert sum(p for _, p in labels).item() == pytest.approx(1)
    expected = factors(model, x, labels[0][0], likelihood, "exact")
    for parts in (1, 2):
        total = {name: torch.zeros_like(G) for name, G in expected.items()}
        for label, p in labels:
            for name, G in factors(model, x, label, likelihood, "empirical", parts).items():
                total[name] += p * G
        for name, G in expected.items():
            assert relative_error(total[name], G) < 1e-10


def test_micro_batches_may_have_unlike_numbers_of_positions():
    """Every one's gradients have a scale of their own."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, dtype=DTYPE)
    optimizer = KFAC(model, lr=0.0, likelihood="categorical", fisher="empirical")
    expected = torch.zeros(3, 3, dtype=DTYPE)
    for t in (2, 5):
        x, y = (tensor.unflatten(0, (3, t)) for tensor in make_batch("categorical", 3 * t, 4, 3, seed=t))

        def closure(x=x, y=y):
            output = model(x)
            return cross_entropy(output, y), output

        optimizer.accumulate(closure)
        g = (torch.softmax(model(x), dim=-1) - nn.functional.one_hot(y, 3)).detach() / math.sqrt(t)
        expected += torch.einsum("nti,ntj->ij", g, g) / 6
    optimizer.step()
    assert relative_error(stored_factors(optimizer, "")[1], expected) < 1e-10


class Repeated(nn.Module):
    """The same logits at each of some positions."""

    def __init__(self, n_positions):
        super().__init__()
        self.net, self.n_positions = make_net(4, 6, 3), n_positions

    def forward(self, x):
        return self.net(x)[:, None].expand(-1, self.n_positions, -1)


FOOF_VARIANTS = ("kfac_damping", "kfac_norm")
METHODS = [
    pytest.param(entry, own, id="-".join([entry.name, *own.values()]))
    for entry in WITH_FISHER
    for own in ([{"variant": v} for v in FOOF_VARIANTS] if entry.name == "foof" else [{}])
]


@pytest.mark.parametrize("fisher", ["empirical", "permuted"])
@pytest.mark.parametrize(("entry", "own"), METHODS)
def test_every_method_has_that_scale(entry, own, fisher):
    """T positions with the same logits and label, which the model takes for independent, are T times the curvature.

    So lr and damping are T times as large for the same updates.
    """
    n_positions, found = 4, []
    for t in (1, n_positions):
        model = Repeated(t)
        options = {"lr": 0.1 * t, "damping": 0.05 * t, "fisher": fisher, **own}
        options |= {"kl_clip": None} if "kl_clip" in inspect.signature(entry.cls).parameters else {}
        options |= {"cg_tolerance": 0.0} if "cg_tolerance" in inspect.signature(entry.cls).parameters else {}
        optimizer = build(entry, model, seed=1, **options)
        for step in range(4):
            x, y = make_batch("categorical", 9, 4, 3, seed=step)

            def closure(model=model, x=x, y=y, t=t):
                output = model(x)
                return cross_entropy(output, y[:, None].expand(-1, t)), output

            optimizer.step(closure)
        found.append(parameters(model))
    for repeated, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(repeated, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("likelihood", "shape"), [(k, s) for k, s in CASES if k != "gaussian"], ids=str)
def test_permuted_labels_have_the_scale_of_drawn_ones(likelihood, shape):
    """√K times the gradient of the loss of one example, by autograd, K the number of terms that it is the mean of."""
    output = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0), dtype=DTYPE, requires_grad=True)
    (v,) = output_vectors(output, likelihood, "permuted", torch.Generator().manual_seed(5))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(5))
    predicted = output[order].argmax(dim=-1) if likelihood == "categorical" else (output[order] > 0).to(DTYPE)
    loss = 6 * LIKELIHOODS[likelihood][0](output, predicted)
    n_terms = math.prod(shape[:-1] if likelihood == "categorical" else shape)
    torch.testing.assert_close(v, math.sqrt(n_terms) * torch.autograd.grad(loss, output)[0])


@pytest.mark.parametrize("labels", ["empirical", "permuted"])
def test_the_thesis_method_keeps_the_scale_of_the_loss(labels):
    """G before its normalisation is that of the loss' gradients, as in the thesis' code."""
    found = {}
    for cls, name in ((ThesisKFAC, "labels"), (KFAC, "fisher")):
        model = Shaped(4)
        optimizer = cls(model, likelihood="bernoulli", seed=3, **{name: labels})
        x, y = make_batch("bernoulli", 6, 4, 4)

        def closure(model=model, x=x, y=y):
            output = model(x)
            return nn.functional.binary_cross_entropy_with_logits(output, y), output

        optimizer.accumulate(closure)
        found[cls] = optimizer._statistics.gradient_covariances()
    for layer, G in found[ThesisKFAC].items():
        torch.testing.assert_close(4 * G, found[KFAC][layer])
