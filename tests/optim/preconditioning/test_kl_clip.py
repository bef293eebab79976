"""The KL clip never lets through what it cannot judge."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kftune.errors import CurvatureError, DivergenceError
from kftune.optim import KFAC, OPTIMIZERS, NaturalGradient
from kftune.optim.preconditioning.kl_clip import kl_clip_factor
from tests.optim._contract import build, parameters
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net, relative_error

WITH_CLIP = [entry for entry in OPTIMIZERS if entry.kl_clip]


def factor(products, lrs, kl_clip=1e-3, **options):
    return kl_clip_factor([torch.tensor(p, dtype=DTYPE) for p in products], lrs, kl_clip, **options).item()


@pytest.mark.parametrize(
    "bad", [[math.nan, 1.0], [math.inf, 1.0], [math.inf, -math.inf], [-2.0, 1.0], [-5.0, 0.0], [-2.0]]
)
def test_what_cannot_be_judged_is_not_let_through(bad):
    assert math.isnan(factor(bad, [1.0] * len(bad)))


def test_what_can_be_judged():
    assert factor([3.0, 1.0], [1.0, 1.0]) == pytest.approx(math.sqrt(1e-3 / 4))
    assert factor([3.0, -1.0], [1.0, 1.0]) == pytest.approx(math.sqrt(1e-3 / 2))
    assert factor([0.0, 0.0], [1.0, 1.0]) == 1
    assert factor([1e-9, -2e-9], [1.0, 1.0]) == 1  # small even without the signs


def test_unequal_learning_rates_and_absolute_values():
    """The sum with signs would be 0.01·1 − 25·0.1 < 0."""
    assert factor([1.0, -0.1], [0.1, 5.0]) == pytest.approx(math.sqrt(1e-3 / (0.01 + 2.5)))
    assert factor([3.0, -1.0], [1.0, 1.0], absolute=True) == pytest.approx(math.sqrt(1e-3 / 4))


@pytest.mark.parametrize("entry", WITH_CLIP, ids=lambda entry: entry.name)
def test_layers_with_learning_rates_of_their_own_are_clipped(entry):
    """Σ η²|⟨P, V⟩| of what was moved, by autograd's V, is κ at most."""
    kappa = 1e-4
    for seed in range(6):
        model = make_net(4, 5, 5, 3, seed=seed)
        optimizer = build(entry, model, likelihood="gaussian", kl_clip=kappa, momentum=0.0, damping=1e-3)
        group = optimizer.param_groups[0]
        split = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        layers = [(2 * i, 2 * i + 2) for i in range(3)]
        params, names = group["params"], group["param_names"]
        optimizer.param_groups[:] = [
            split | {"params": params[a:b], "param_names": names[a:b], "lr": lr}
            for (a, b), lr in zip(layers, (0.1, 5.0, 0.1), strict=True)
        ]
        x, y = make_batch("gaussian", 8, 4, 3, seed=seed)
        V = torch.autograd.grad(make_closure(model, x, y, "gaussian")()[0], list(model.parameters()))
        before = parameters(model)
        optimizer.step(make_closure(model, x, y, "gaussian"))
        moved = [b - a for b, a in zip(before, parameters(model), strict=True)]
        judged = 0.0
        for (a, b), lr in zip(layers, (0.1, 5.0, 0.1), strict=True):
            judged += lr * abs(sum(float((m * v).sum()) for m, v in zip(moved[a:b], V[a:b], strict=True)))
        assert judged * optimizer.readings()["kl_clip_scale"] <= kappa * (1 + 1e-6)


@pytest.mark.parametrize("damping", [1e-4, 1e-5, 1e-6])
def test_a_small_damping_costs_no_digits_in_single_precision(damping):
    """The gradient lies in the span of the empirical Fisher's: V − Jc is all rounding in float32."""
    found = []
    for dtype in (torch.float32, torch.float64):
        model = make_net(6, 8, 3).to(dtype)
        before = parameters(model)
        optimizer = NaturalGradient(
            model, lr=1e-3, damping=damping, fisher="empirical", momentum=0.0, kl_clip=None, likelihood="gaussian"
        )
        x, y = make_batch("gaussian", 8, 6, 3)
        optimizer.step(make_closure(model, x.to(dtype), y.to(dtype), "gaussian"))
        found.append(torch.cat([(a - b).double().flatten() for a, b in zip(parameters(model), before, strict=True)]))
    # What float32 makes of the parameters and the examples' gradients stays: 1e-7·(condition of their products).
    assert relative_error(*found) < 0.05


def natural_change(sizes, likelihood, dtype, **options):
    """What one update adds to the parameters, in float64, and the resolution of parameters of the type."""
    model = make_net(*sizes).to(dtype)
    before = parameters(model)
    optimizer = NaturalGradient(model, momentum=0.0, kl_clip=None, likelihood=likelihood, **options)
    x, y = make_batch(likelihood, 16, sizes[0], sizes[-1])
    y = y if likelihood == "categorical" else y.to(dtype)
    optimizer.step(make_closure(model, x.to(dtype), y, likelihood))
    change = [(a - b).double().flatten() for a, b in zip(parameters(model), before, strict=True)]
    grain = torch.finfo(dtype).eps * torch.cat([p.double().flatten() for p in before]).norm()
    return torch.cat(change), grain


@pytest.mark.parametrize("fisher", ["empirical", "exact"])
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("sizes", [(6, 8, 3), (40, 60, 60, 10)], ids=str)
def test_a_solution_is_right_or_refused(sizes, likelihood, fisher):
    """In single precision as in double, at any damping: V in the span of F's examples, or, with other examples, not."""
    refused = []
    for damping in (10.0**-k for k in range(2, 13)):
        for n_examples in (4, None):
            options = {"lr": damping, "damping": damping, "fisher": fisher, "fisher_examples": n_examples}
            expected, _ = natural_change(sizes, likelihood, torch.float64, **options)
            try:
                found, grain = natural_change(sizes, likelihood, torch.float32, **options)
            except CurvatureError:
                refused.append((damping, n_examples))
            else:
                assert (found - expected).norm() < 0.5 * expected.norm() + grain
    assert refused
    assert max(damping for damping, _ in refused) < 1e-6
    assert all(n_examples is None for _, n_examples in refused)


def test_what_is_refused_says_so():
    with pytest.raises(CurvatureError, match=r"the damping 1e-09 is too small: all .* is the gradient's rounding"):
        natural_change((6, 8, 3), "gaussian", torch.float32, damping=1e-9, fisher="empirical")


@pytest.mark.parametrize("block_diagonal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_damping_below_what_double_precision_resolves_is_refused(dtype, block_diagonal):
    model = make_net(6, 8, 3).to(dtype)
    before = parameters(model)
    optimizer = NaturalGradient(
        model, damping=1e-17, fisher="empirical", block_diagonal=block_diagonal, likelihood="gaussian"
    )
    x, y = make_batch("gaussian", 8, 6, 3)
    with pytest.raises(CurvatureError, match=r"the damping is too small: the matrix of gradient products of .*float64"):
        optimizer.step(make_closure(model, x.to(dtype), y.to(dtype), "gaussian"))
    assert all(torch.equal(a, b) for a, b in zip(parameters(model), before, strict=True))
    for group in optimizer.param_groups:
        group["damping"] = 0.1
    optimizer.step(make_closure(model, x.to(dtype), y.to(dtype), "gaussian"))


def test_an_unjudged_update_is_refused():
    model = make_net(4, 5, 3)
    optimizer = KFAC(model, likelihood="gaussian")
    before = parameters(model)
    x, y = make_batch("gaussian", 8, 4, 3)

    def overflowing():
        loss, output = make_closure(model, x, y, "gaussian")()
        return loss * 1e200, output

    with pytest.raises(DivergenceError, match="KL clip"):
        optimizer.step(overflowing)
    assert all(torch.equal(a, b) for a, b in zip(parameters(model), before, strict=True))


def normalised(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).to(DTYPE)


@pytest.mark.parametrize("entry", WITH_CLIP, ids=lambda entry: entry.name)
@pytest.mark.parametrize("unequal", [False, True], ids=["one lr", "two lrs"])
def test_the_fallback_counts_in_the_clip_if_it_is_to(entry, unequal):
    """Σ η²ν²⟨P, V⟩ of everything that moved is κ: at lr 3 the vectors of a LayerNorm alone are beyond it."""
    kappa, beyond = 1e-3, []
    for inside in (True, False):
        for seed in range(3):
            model = normalised(seed)
            optimizer = build(
                entry, model, likelihood="gaussian", lr=3.0, kl_clip=kappa, clip_fallback=inside, momentum=0.0
            )
            if unequal:
                group = optimizer.param_groups[0]
                rest = {k: v for k, v in group.items() if k not in ("params", "param_names")}
                ends = [(slice(0, 2), 3.0), (slice(2, None), 2.0)]
                optimizer.param_groups[:] = [
                    rest | {"params": group["params"][own], "param_names": group["param_names"][own], "lr": lr}
                    for own, lr in ends
                ]
            lrs = [3.0] * 2 + [2.0 if unequal else 3.0] * 4
            x, y = make_batch("gaussian", 12, 4, 3, seed=seed)
            V = torch.autograd.grad(make_closure(model, x, 5 * y, "gaussian")()[0], list(model.parameters()))
            before = parameters(model)
            optimizer.accumulate(make_closure(model, x, 5 * y, "gaussian"))
            gradients = [p.grad.clone() for p in model.parameters()]
            optimizer.step()
            assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
            # moved = ηνP
            moved = [b - a for b, a in zip(before, parameters(model), strict=True)]
            products = torch.tensor([lr * float((m * v).sum()) for lr, m, v in zip(lrs, moved, V, strict=True)])
            by_layer = [products[:2].sum(), products[2], products[3], products[4:].sum()]
            judged = (
                float(torch.stack(by_layer).abs().sum())
                if unequal or entry.name == "two_level_kfac"
                else float(sum(by_layer))
            )
            scale = optimizer.readings()["kl_clip_scale"]
            if inside:
                assert judged * scale == pytest.approx(kappa, rel=1e-5)
                assert optimizer.coverage()["1.weight"] == "SGD, inside the KL clip"
                # νP of the fallback is ν times its gradient
                torch.testing.assert_close(moved[2], lrs[2] * scale * V[2], rtol=1e-5, atol=1e-12)
            else:
                # the vectors are not shortened: η²⟨V, V⟩ of them comes on top
                beyond.append(float(sum(lr**2 * v.square().sum() for lr, v in zip(lrs[2:4], V[2:4], strict=True))))
                torch.testing.assert_close(moved[2], lrs[2] * V[2])
    assert max(beyond) > kappa


def test_coverage_says_what_is_outside_the_clip():
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    said = {clip: KFAC(model, kl_clip=clip, likelihood="gaussian").coverage()["1.weight"] for clip in (1e-3, None)}
    assert said == {1e-3: "SGD, outside the KL clip", None: "SGD"}
