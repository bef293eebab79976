"""curvlinops and backpack, written by others, on the same networks: factors and the preconditioned gradient."""

from __future__ import annotations

import pytest
import torch
from backpack import backpack, extend
from backpack.extensions import KFLR
from curvlinops import FisherType, KFACInverseLinearOperator, KFACLinearOperator, KFACType
from torch import nn

from kftune.optim import KFAC
from tests.optim._dense import DTYPE, make_closure, relative_error, stored_factors

SAME = 1e-10  # relative, float64; observed at most 2e-15
FISHERS = {"exact": FisherType.TYPE2, "empirical": FisherType.EMPIRICAL}
LOSSES = {"categorical": nn.CrossEntropyLoss(), "gaussian": nn.MSELoss(), "bernoulli": nn.BCEWithLogitsLoss()}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


class Pooled(nn.Module):
    """A classifier of sequences."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.first(x).tanh().mean(dim=1))


def networks():
    torch.manual_seed(0)
    return {
        "mlp": (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), random(7, 4)),
        "convolutions": (
            nn.Sequential(
                nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(18, 3)
            ),
            random(6, 2, 6, 8),
        ),
        "sequences": (Pooled(), random(6, 7, 4)),
    }


def problem(name, likelihood):
    model, x = networks()[name]
    y = random(len(x), 3, seed=1)
    target = {"categorical": y.argmax(dim=1), "gaussian": y, "bernoulli": (y > 0).to(DTYPE)}[likelihood]
    return model.to(DTYPE), x, target


def gather(model, x, y, likelihood, **settings):
    optimizer = KFAC(model, lr=0.0, likelihood=likelihood, **settings)
    optimizer.accumulate(make_closure(model, x, y, likelihood))
    optimizer.step()
    return optimizer


def curvlinops_kfac(model, x, y, likelihood, fisher, sharing):
    return KFACLinearOperator(
        model,
        LOSSES[likelihood],
        list(model.parameters()),
        [(x, y)],
        fisher_type=FISHERS[fisher],
        kfac_approx={"expand": KFACType.EXPAND, "reduce": KFACType.REDUCE}[sharing],
        separate_weight_and_bias=False,
        check_deterministic=False,
    )


@pytest.mark.product
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("likelihood", LOSSES)
@pytest.mark.parametrize("name", ["mlp", "convolutions", "sequences"])
def test_factors_are_those_of_curvlinops(name, likelihood, fisher, sharing):
    model, x, y = problem(name, likelihood)
    optimizer = gather(model, x, y, likelihood, fisher=fisher, weight_sharing=sharing)
    theirs = curvlinops_kfac(model, x, y, likelihood, fisher, sharing)
    theirs.compute_kronecker_factors()
    # They take each output's square for a negative log-likelihood, N(f, 1/2)'s; here their mean is that of N(f, O/2).
    convention = 3 if fisher == "empirical" and likelihood == "gaussian" else 1
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert set(layers) == set(theirs._input_covariances)
    for layer in layers:
        A, G = stored_factors(optimizer, layer)
        assert relative_error(A, theirs._input_covariances[layer]) < SAME
        assert relative_error(convention * G, theirs._gradient_covariances[layer]) < SAME


@pytest.mark.parametrize("method", ["factored", "exact", "plain"])
@pytest.mark.parametrize("name", ["mlp", "convolutions", "sequences"])
def test_the_preconditioned_gradient_is_that_of_curvlinops(name, method):
    model, x, y = problem(name, "categorical")
    before = {p: p.detach().clone() for p in model.parameters()}
    theirs = KFACInverseLinearOperator(
        curvlinops_kfac(model, x, y, "categorical", "exact", "expand"),
        damping=0.03,
        use_heuristic_damping=method == "factored",
        use_exact_damping=method == "exact",
    )
    LOSSES["categorical"](model(x), y).backward()
    expected = theirs @ [p.grad.clone() for p in model.parameters()]
    settings = {"fisher": "exact", "damping": 0.03, "damping_method": method, "kl_clip": None, "momentum": 0.0}
    optimizer = KFAC(model, lr=1.0, likelihood="categorical", **settings)
    optimizer.step(make_closure(model, x, y, "categorical"))
    for p, direction in zip(model.parameters(), expected, strict=True):
        assert relative_error(before[p] - p.detach(), direction) < 1e-9


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # backpack's hook on the first layer
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_factors_are_those_of_backpack(likelihood):
    """Its KFLR, "low rank" as it uses the exact root of the loss' Hessian, is the exact Fisher."""
    model, x, y = problem("mlp", likelihood)
    optimizer = gather(model, x, y, likelihood, fisher="exact")
    output = extend(model)(x)
    with backpack(KFLR()):
        extend(LOSSES[likelihood])(output, y).backward()
    for layer, module in model.named_modules():
        if isinstance(module, nn.Linear):
            A, G = stored_factors(optimizer, layer)
            theirs_G, theirs_A = module.weight.kflr
            assert relative_error(A[:-1, :-1], theirs_A) < SAME
            assert relative_error(G, theirs_G) < SAME
