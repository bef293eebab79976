"""Block-tridiagonal K-FAC that sets its own step, λ and γ, against the dense inverse and the dense quadratic model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.optim import KFAC, BlockTridiagonalKFAC
from tests.optim._adaptive_kfac import EACH_TIME, OWN_STEP, batches, curvature, position, step
from tests.optim._dense import layer_matrix, linear_layers, make_closure, make_net, relative_error, unvec, vec
from tests.optim._dense_objective import flatten
from tests.optim._dense_tridiagonal import damped, dense_inverse, moments_of

EXACT = 1e-10  # relative, float64; observed at most 3e-15


def build(model, rescale="alpha_and_momentum", likelihood="categorical", **changes):
    return BlockTridiagonalKFAC(
        model, likelihood=likelihood, rescale=rescale, **(OWN_STEP | EACH_TIME | {"warmup_updates": 0} | changes)
    )


def natural(model, batch, likelihood, damping, gradient):
    """−F̂⁻¹∇h in the order of the parameters."""
    factors, crosses = moments_of(model, batch[0], likelihood)
    modules = list(linear_layers(model).values())
    parts = iter(gradient.split([p.numel() for p in model.parameters()]))
    V = [torch.cat([next(parts).view_as(m.weight), next(parts)[:, None]], dim=1) for m in modules]
    P = dense_inverse(damped(factors, damping), crosses) @ torch.cat([vec(own) for own in V])
    P = [unvec(part, layer_matrix(m)) for part, m in zip(P.split([own.numel() for own in V]), modules, strict=True)]
    return -flatten(tensor for own in P for tensor in (own[:, :-1], own[:, -1]))


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("rescale", ["alpha", "alpha_and_momentum"])
def test_updates_minimise_the_model_on_the_span_of_their_directions(rescale, likelihood):
    model = make_net(4, 5, 4, 3)
    optimizer = build(model, rescale, likelihood, damping=0.3, weight_decay=0.1)
    previous = None
    for batch in batches(4, likelihood):
        C, g = curvature(model, batch, likelihood, 0.3, 0.1)
        Delta = natural(model, batch, likelihood, 0.4, g)
        D = torch.stack([Delta] if rescale == "alpha" or previous is None else [Delta, previous])
        expected = -torch.linalg.solve(D @ C @ D.T, D @ g) @ D
        change = step(optimizer, model, batch, likelihood)
        assert relative_error(change, expected) < EXACT
        assert relative_error(change, Delta) > 1e-2
        previous = change


def test_of_one_layer_it_is_adaptive_kfac():
    settings = {"adaptive_damping": True, "damping_every": 1, "adaptive_gamma": True, "gamma_every": 1, "damping": 1.0}
    models = [make_net(4, 3), make_net(4, 3)]
    tridiagonal = build(models[0], **settings)
    plain = KFAC(
        models[1],
        likelihood="categorical",
        rescale="alpha_and_momentum",
        warmup_updates=0,
        **(OWN_STEP | EACH_TIME | settings),
    )
    for batch in batches(6):
        step(tridiagonal, models[0], batch)
        step(plain, models[1], batch)
        assert relative_error(position(models[0]), position(models[1])) < EXACT
    assert tridiagonal.param_groups[0]["damping"] == plain.param_groups[0]["damping"] != 1.0


def test_lambda_follows_the_reduction_of_the_objective():
    """ρ by the dense M and the loss itself; over the updates λ shrinks and grows."""
    model = make_net(4, 5, 4, 3)
    optimizer = build(model, adaptive_damping=True, damping_every=2, damping=1e-4, weight_decay=0.05)
    expected, outcomes = 1e-4, set()
    for k, (x, y) in enumerate(batches(30)):

        def h(x=x, y=y):
            return (nn.functional.cross_entropy(model(x), y) + 0.025 * (position(model) ** 2).sum()).item()

        C, g = curvature(model, (x, y), "categorical", expected, 0.05)
        before = h()
        delta = step(optimizer, model, (x, y))
        if k % 2 == 1:
            rho = (h() - before) / (g @ delta + 0.5 * delta @ C @ delta).item()
            factor = 0.95**2 if rho > 0.75 else 0.95**-2 if rho < 0.25 else 1.0
            expected = max(expected * factor, 1e-8)
            outcomes.add(factor)
        assert optimizer.param_groups[0]["damping"] == pytest.approx(expected, rel=1e-12)
    assert {0.95**2, 0.95**-2} <= outcomes


def test_gamma_is_the_best_of_three():
    model = make_net(4, 5, 4, 3)
    optimizer = build(model, "alpha", "gaussian", adaptive_gamma=True, gamma_every=2, damping=0.01)
    gamma, outcomes = 0.1, set()
    for k, batch in enumerate(batches(12, "gaussian")):
        due = k >= 2 and k % 2 == 0
        tried = [0.95 * gamma, gamma, gamma / 0.95] if due else [gamma]
        C, g = curvature(model, batch, "gaussian", 0.01, 0.0)
        changes = []
        for candidate in tried:
            Delta = natural(model, batch, "gaussian", candidate**2, g)
            changes.append(-(g @ Delta) / (Delta @ C @ Delta) * Delta)
        lowest = min(range(len(tried)), key=lambda i, changes=changes, g=g: (g @ changes[i]).item())
        assert relative_error(step(optimizer, model, batch, "gaussian"), changes[lowest]) < EXACT
        gamma = tried[lowest]
        assert optimizer.readings()["gamma"] == pytest.approx(gamma, rel=1e-12)
        outcomes |= {lowest} if due else set()
    assert len(outcomes) > 1


ALL = {"adaptive_damping": True, "damping_every": 2, "adaptive_gamma": True, "gamma_every": 3, "averaging": 0.8}
ALL |= {"damping": 1.0, "weight_decay": 0.01}


def test_micro_batches_give_the_update_of_their_union():
    models = [make_net(4, 5, 4, 3), make_net(4, 5, 4, 3)]
    whole, parts = (build(model, **ALL) for model in models)
    for x, y in batches(8):
        whole.step(make_closure(models[0], x, y, "categorical"))
        for part in zip(x.split((2, 10)), y.split((2, 10)), strict=True):
            parts.accumulate(make_closure(models[1], *part, "categorical"))
        parts.step()
    torch.testing.assert_close(position(models[1]), position(models[0]), rtol=1e-8, atol=1e-10)
    assert parts.param_groups[0]["damping"] == whole.param_groups[0]["damping"] != 1.0


@pytest.mark.parametrize("done", [1, 2, 5])
def test_a_saved_state_goes_on_bit_for_bit(done):
    settings = ALL | {"inverses_every": 4, "statistics_every": 2, "fisher": "mc", "factor_decay": 0.9}
    model = make_net(4, 5, 4, 3)
    optimizer = build(model, **settings)
    for batch in batches(done):
        step(optimizer, model, batch)
    resumed_model = make_net(4, 5, 4, 3, seed=1)
    resumed = build(resumed_model, seed=5, **settings | {"damping": 77.0})
    resumed_model.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    for batch in batches(6):
        assert torch.equal(step(optimizer, model, batch), step(resumed, resumed_model, batch))
    with optimizer.evaluation_parameters(), resumed.evaluation_parameters():
        assert torch.equal(position(model), position(resumed_model))


def test_a_state_from_before_it_could_adapt_itself_goes_on():
    models = [make_net(4, 5, 3), make_net(4, 5, 3)]
    old, new = (BlockTridiagonalKFAC(model, likelihood="categorical") for model in models)
    state = old.state_dict()
    del state["extra"]["adaptation"]
    new.load_state_dict(state)
    for batch in batches(2):
        assert torch.equal(step(old, models[0], batch), step(new, models[1], batch))
    with pytest.raises(ValueError, match="is one of plain K-FAC, this optimizer is adaptive"):
        build(make_net(4, 5, 3)).load_state_dict(state)


def test_the_graph_of_a_batch_that_is_run_again_does_not_outlive_the_update():
    model = make_net(4, 5, 3)
    optimizer = build(model, adaptive_damping=True, damping_every=1)
    step(optimizer, model, batches(1)[0])
    assert optimizer._output is None
    assert optimizer._calls == ["0", "2"]
