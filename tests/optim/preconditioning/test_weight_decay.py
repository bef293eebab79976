"""Weight decay of every registered optimizer that has a choice: decoupled or not, and its share in the damping."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from kftune.optim import KFAC, OPTIMIZERS, SGD
from tests.optim._contract import build, network, parameters, train
from tests.optim._dense import (
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

EXACT = 1e-12  # relative, float64: two roundings of a step that is otherwise the same

# A model of the objective has the decay inside: those refuse, as their ``invalid`` says.
ENTRIES = [
    entry
    for entry in OPTIMIZERS
    if "decoupled_weight_decay" in inspect.signature(entry.cls).parameters and "alpha" not in entry.readings
]
every = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def test_every_decay_that_was_added_to_the_gradient_can_be_decoupled():
    """All but the methods whose decay has no other form, and the one without any."""
    assert {entry.name for entry in OPTIMIZERS} - {entry.name for entry in ENTRIES} == {
        "adamw",
        "muon",
        "shampoo",
        "soap",
        "kfac_adaptive",
        "kfac_thesis",
    }


@every
@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("nesterov", [False, True])
def test_it_is_the_update_without_decay_from_parameters_that_were_shrunk(entry, momentum, nesterov):
    """θ ← (1 − ηζ)θ + δ, δ what the method without decay does at θ: with its curvature, clip, velocity and draws."""
    lr, decay = 0.2, 0.3
    settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
    model = network()
    optimizer = build(entry, model, weight_decay=decay, decoupled_weight_decay=True, **settings)
    for step in range(7):
        twin_model = copy.deepcopy(model)
        twin = build(entry, twin_model, **settings)
        state = optimizer.state_dict()
        for group in state["param_groups"]:
            group.update(weight_decay=0.0, decoupled_weight_decay=False)
        twin.load_state_dict(state)
        before = parameters(model)
        train(optimizer, model, 1, first=step)
        train(twin, twin_model, 1, first=step)
        for old, found, plain in zip(before, parameters(model), parameters(twin_model), strict=True):
            torch.testing.assert_close(found, plain - lr * decay * old, rtol=EXACT, atol=EXACT)


@every
def test_weights_that_no_gradient_reaches_shrink_by_one_factor(entry):
    """An input that is always 0: whatever the curvature, its weights are (1 − ηζ)^k of what they were."""
    lr, decay = 0.2, 0.3
    arguments = inspect.signature(entry.cls).parameters
    own = {"coarse_weight": 0.0} if "coarse_weight" in arguments else {}  # a correction of whole layers
    model = network()
    optimizer = build(entry, model, lr=lr, weight_decay=decay, decoupled_weight_decay=True, **own)
    start = model[0].weight.detach()[:, 2].clone()
    for step in range(6):
        x, y = make_batch("categorical", 24, 6, 3, seed=step)
        x[:, 2] = 0.0
        optimizer.step(make_closure(model, x, y, "categorical"))
        expected = (1 - lr * decay) ** (step + 1) * start
        torch.testing.assert_close(model[0].weight.detach()[:, 2], expected, rtol=1e-9, atol=1e-12)


@every
def test_a_thin_gradient_needs_no_matrix_for_it(entry):
    """The decay stays out of what is preconditioned: small batches go through their factors as without it."""
    thin = {}
    for name, settings in {"none": {}, "decoupled": {"weight_decay": 0.3, "decoupled_weight_decay": True}}.items():
        model = make_net(20, 19, 18)
        optimizer = build(entry, model, **settings)
        optimizer.step(make_closure(model, *make_batch("categorical", 2, 20, 18), "categorical"))
        thin[name] = [p.grad is None for p in model.parameters()]
    assert thin["decoupled"] == thin["none"]


@every
def test_a_state_from_before_there_was_a_choice_goes_on_with_the_gradients_decay(entry):
    models = [network(), network()]
    old, new = (build(entry, model, weight_decay=0.1) for model in models)
    train(old, models[0], 3)
    models[1].load_state_dict(models[0].state_dict())
    state = old.state_dict()
    for group in state["param_groups"]:
        del group["decoupled_weight_decay"]
    new.load_state_dict(state)
    for optimizer, model in zip((old, new), models, strict=True):
        train(optimizer, model, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(parameters(models[0]), parameters(models[1]), strict=True))


def test_groups_decay_each_in_its_own_way():
    model = network()
    optimizer = SGD(model, lr=0.5, momentum=0.9, nesterov=False, weight_decay=0.2)
    (group,) = optimizer.param_groups
    own = {k: v for k, v in group.items() if k not in ("params", "param_names")}
    params, names = group["params"], group["param_names"]
    group["params"], group["param_names"] = params[:2], names[:2]
    second = own | {"params": params[2:], "param_names": names[2:], "decoupled_weight_decay": True, "weight_decay": 0.4}
    optimizer.param_groups.append(second)
    velocities = [torch.zeros_like(p) for p in model.parameters()]
    for step in range(3):
        before = parameters(model)
        train(optimizer, model, 1, first=step)
        for i, (old, p) in enumerate(zip(before, model.parameters(), strict=True)):
            velocities[i] = 0.9 * velocities[i] + p.grad + (0.2 * old if i < 2 else 0)
            expected = old - 0.5 * velocities[i] - (0 if i < 2 else 0.5 * 0.4 * old)
            torch.testing.assert_close(p.detach(), expected, rtol=EXACT, atol=EXACT)


# The ℓ2 coefficient's share in the damping.

DAMPED = [e for e in OPTIMIZERS if "damped_weight_decay" in inspect.signature(e.cls).parameters]


def dead_input_growth(entry, **settings):
    """Largest |w'|/|w| over six updates of the weights of an input that is always 0; λ = 1e-3, ζ = 1e-2, η = 1."""
    arguments = inspect.signature(entry.cls).parameters
    own = {"lr": 1.0, "damping": 1e-3, "weight_decay": 1e-2, "kl_clip": None, "momentum": 0.0, "coarse_weight": 0.0}
    own |= {"cg_iterations": 500, "cg_tolerance": 1e-14, **settings}
    model = network()
    optimizer = build(entry, model, **{k: v for k, v in own.items() if k in arguments})
    found = []
    for step in range(6):
        x, y = make_batch("categorical", 24, 6, 3, seed=step)
        x[:, 2] = 0.0
        before = model[0].weight.detach()[:, 2].clone()
        optimizer.step(make_closure(model, x, y, "categorical"))
        found.append((model[0].weight.detach()[:, 2].norm() / before.norm()).item())
    return max(found)


@pytest.mark.parametrize("entry", DAMPED, ids=lambda entry: entry.name)
def test_weights_that_no_gradient_reaches_do_not_grow_by_their_decay(entry):
    assert dead_input_growth(entry) < 1


@pytest.mark.parametrize("variant", ["kfac_damping", "kfac_norm"])
def test_nor_do_they_in_foofs_variants(variant):
    entry = OPTIMIZERS.get("foof")
    assert dead_input_growth(entry, variant=variant, fisher="exact") < 1


@pytest.mark.parametrize(
    ("name", "settings"),
    [("kfac", {"damping_method": "exact"}), ("cg_fac", {}), ("natural_gradient", {"inverses_every": 1})],
)
def test_damped_by_lambda_alone_they_do_by_a_known_factor(name, settings):
    """Tikhonov damping: (0 + λ)⁻¹ζw, so w' = (1 − ζ/λ)w = −9w; with λ + ζ it is w/11."""
    entry = OPTIMIZERS.get(name)
    assert dead_input_growth(entry, damped_weight_decay=False, **settings) == pytest.approx(9, rel=1e-6)
    assert dead_input_growth(entry, damped_weight_decay=True, **settings) == pytest.approx(1 / 11, rel=1e-6)


@pytest.mark.parametrize("damped", [True, False])
@pytest.mark.parametrize("method", ["exact", "factored", "plain"])
def test_the_update_is_the_dense_solve_with_either_damping(method, damped):
    lam, zeta = 0.05, 0.2
    model = make_net(4, 5, 3)
    x, y = make_batch("categorical", 12, 4, 3)
    before = {name: layer_matrix(module) for name, module in linear_layers(model).items()}
    settings = {"damping": lam, "weight_decay": zeta, "damped_weight_decay": damped, "damping_method": method}
    optimizer = KFAC(model, lr=1.0, momentum=0.0, kl_clip=None, fisher="exact", likelihood="categorical", **settings)
    optimizer.accumulate(make_closure(model, x, y, "categorical"))
    optimizer.step()
    total = lam + zeta if damped else lam
    for name, module in linear_layers(model).items():
        A, G = stored_factors(optimizer, name)
        V = layer_gradient(module) + zeta * before[name]
        eye_A, eye_G = torch.eye(len(A), dtype=V.dtype), torch.eye(len(G), dtype=V.dtype)
        if method == "exact":
            F = torch.kron(A, G) + total * torch.eye(V.numel(), dtype=V.dtype)
            expected = unvec(torch.linalg.solve(F, vec(V)), V)
        else:
            pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
            on_A, on_G = (pi * total**0.5, total**0.5 / pi) if method == "factored" else (total, total)
            expected = torch.linalg.inv(G + on_G * eye_G) @ V @ torch.linalg.inv(A + on_A * eye_A)
        assert relative_error(before[name] - layer_matrix(module), expected) < 1e-10


@pytest.mark.parametrize("damped", [True, False])
def test_the_first_gamma_is_the_root_of_either_damping(damped):
    settings = {"rescale": "alpha", "adaptive_gamma": True, "kl_clip": None, "momentum": 0.0}
    optimizer = KFAC(
        network(), damping=0.5, weight_decay=0.14, damped_weight_decay=damped, likelihood="categorical", **settings
    )
    assert optimizer.readings()["gamma"] == pytest.approx(0.64**0.5 if damped else 0.5**0.5)
