"""What K-FAC adapts: updates by the quadratic model, λ, γ, the average; against dense mathematics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kftune.optim import KFAC, OPTIMIZERS, SGD
from kftune.optim.preconditioning.adaptive import adaptation
from kftune.optim.preconditioning.adaptive.options import AdaptiveOptions
from tests.optim._adaptive_kfac import batches, build, curvature, position, step
from tests.optim._contract import build as build_entry
from tests.optim._contract import network, train
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net, relative_error
from tests.optim._dense_objective import flatten

EXACT = 1e-10  # relative, float64; observed at most 2e-15
# Length and momentum.


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_an_exact_natural_gradient_is_taken_as_it_is(weight_decay):
    """K-FAC is exact for one layer and a Gaussian: (α, μ) = (1, 0) at every update, δ₀ notwithstanding."""
    model = make_net(4, 3, activation=None)
    optimizer = build(model, likelihood="gaussian", damping=0.3, weight_decay=weight_decay, damping_method="exact")
    for batch in batches(4, "gaussian"):
        C, g = curvature(model, batch, "gaussian", 0.3, weight_decay)
        change = step(optimizer, model, batch, "gaussian")
        assert relative_error(change, -torch.linalg.solve(C, g)) < EXACT


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
@pytest.mark.parametrize("rescale", ["alpha", "alpha_and_momentum"])
def test_updates_minimise_the_model_on_the_span_of_their_directions(rescale, likelihood):
    model = make_net(4, 5, 3)
    optimizer = build(model, rescale, likelihood, damping=0.3, weight_decay=0.1)
    previous = torch.zeros(0)
    for batch in batches(4, likelihood):
        twin = copy.deepcopy(model)
        plain = build(twin, "none", likelihood, damping=0.4, weight_decay=0.1, damped_weight_decay=False)
        natural = step(plain, twin, batch, likelihood)
        C, g = curvature(model, batch, likelihood, 0.3, 0.1)
        D = [natural] if rescale == "alpha" or not len(previous) else [natural, previous]
        change = step(optimizer, model, batch, likelihood)
        D = torch.stack(D)
        expected = -torch.linalg.solve(D @ C @ D.T, D @ g) @ D
        assert relative_error(change, expected) < EXACT
        assert relative_error(change, natural) > 1e-2
        previous = change


class Normalised(nn.Sequential):
    """Parameters with and without a Kronecker factorisation."""

    def __init__(self):
        super().__init__(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))
        self.double()


def test_what_kfac_leaves_out_moves_along_its_gradient_with_its_own_coefficient():
    torch.manual_seed(0)
    model = Normalised()
    optimizer = build(model, damping=0.3)
    assert optimizer.coverage() == {
        "0.weight": "Kronecker-factored",
        "0.bias": "Kronecker-factored",
        "1.weight": "gradient, length by the quadratic model",
        "1.bias": "gradient, length by the quadratic model",
        "3.weight": "Kronecker-factored",
        "3.bias": "Kronecker-factored",
    }
    norm = flatten(torch.full_like(p, name.startswith("1.")) for name, p in model.named_parameters())
    previous = None
    for batch in batches(3):
        twin = copy.deepcopy(model)
        natural = (1 - norm) * step(build(twin, "none", damping=0.3), twin, batch)
        C, g = curvature(model, batch, "categorical", 0.3, 0.0)
        D = torch.stack([natural, norm * g] + ([] if previous is None else [previous]))
        expected = -torch.linalg.solve(D @ C @ D.T, D @ g) @ D
        previous = step(optimizer, model, batch)
        assert relative_error(previous, expected) < EXACT


class TwoHeads(nn.Module):
    """Only one of two heads is used at a time."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 5)
        self.heads = nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])
        self.head = 0
        self.double()

    def forward(self, x):
        return self.heads[self.head](torch.tanh(self.trunk(x)))


def test_what_did_not_move_has_no_previous_update():
    torch.manual_seed(0)
    model = TwoHeads()
    optimizer = build(model)
    for model.head, batch in zip((0, 1, 1), batches(3), strict=True):
        unused = list(model.heads[1 - model.head].parameters())
        before = [p.detach().clone() for p in unused]
        step(optimizer, model, batch)
        assert all(torch.equal(p, old) for p, old in zip(unused, before, strict=True))
        remembered = {name for name, p in model.named_parameters() if "previous_update" in optimizer.state[p]}
        used = {f"{module}.{name}" for module in ("trunk", f"heads.{model.head}") for name in ("weight", "bias")}
        assert remembered == used


def test_the_learning_rate_shortens_the_update():
    changes = {}
    for lr in (1.0, 0.25):
        model = make_net(4, 5, 3)
        changes[lr] = step(build(model, lr=lr), model, batches(1)[0])
    assert relative_error(changes[0.25], 0.25 * changes[1.0]) < EXACT


def test_without_rescaling_only_the_average_differs_from_plain_kfac():
    models = [make_net(4, 5, 3), make_net(4, 5, 3)]
    plain, averaged = (
        KFAC(models[0], likelihood="categorical"),
        KFAC(models[1], likelihood="categorical", averaging=0.9),
    )
    for batch in batches(3):
        assert torch.equal(step(plain, models[0], batch), step(averaged, models[1], batch))


# λ.


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (-0.76, 0.95**5),
        (-0.74, 1.0),
        (-0.26, 1.0),
        (-0.24, 0.95**-5),
        (1.0, 0.95**-5),
        (float("nan"), 0.95**-5),
        (float("inf"), 0.95**-5),
        (float("-inf"), 0.95**-5),
    ],
)
def test_levenberg_marquardt(change, expected):
    assert adaptation.levenberg_marquardt(2.0, change, -1.0, 5) == pytest.approx(2 * expected, rel=1e-15)


def test_levenberg_marquardt_has_a_floor_and_ignores_what_the_model_did_not_like():
    assert adaptation.levenberg_marquardt(1e-8, -1.0, -1.0, 5) == 1e-8
    for predicted in (0.0, 1.0):
        for change in (-1.0, 0.0, float("nan")):
            assert adaptation.levenberg_marquardt(2.0, change, predicted, 5) == 2.0


@pytest.fixture
def adapted(monkeypatch):
    """Every (λ, h(θ + δ) − h(θ), M(δ) − M(0), T₁) that the rule for λ is asked about."""
    seen = []

    def recording(*arguments):
        seen.append(arguments)
        return rule(*arguments)

    rule = adaptation.levenberg_marquardt
    monkeypatch.setattr(adaptation, "levenberg_marquardt", recording)
    return seen


@pytest.mark.parametrize("damped", [True, False])
@pytest.mark.parametrize("lr", [1.0, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_on_a_quadratic_objective_the_model_is_off_by_lambda_alone(adapted, damped, lr, weight_decay):
    """Linear model and squared error: h(θ + δ) − h(θ) = M(δ) − M(0) − ½λ‖δ‖², and ρ = 1 without λ in M."""
    model = make_net(4, 3, activation=None)
    settings = {"damping": 0.7, "weight_decay": weight_decay, "lr": lr, "damped_reduction": damped}
    optimizer = build(model, likelihood="gaussian", adaptive_damping=True, damping_every=1, **settings)
    for batch in batches(3, "gaussian"):
        damping = optimizer.param_groups[0]["damping"]
        delta = step(optimizer, model, batch, "gaussian")
        found, change, predicted, every = adapted[-1]
        assert (found, every) == (damping, 1)
        off = 0.5 * damping * (delta @ delta).item() if damped else 0.0
        assert change == pytest.approx(predicted - off, rel=1e-9)  # h is of order 1, the change of order 0.1
        assert predicted < 0
        assert optimizer.param_groups[0]["damping"] == damping * 0.95


def test_the_change_of_the_objective_is_that_of_all_micro_batches(adapted):
    model = make_net(4, 5, 3)
    optimizer = build(model, adaptive_damping=True, damping_every=1, weight_decay=0.3)
    x, y = batches(1)[0]

    def h():
        return (nn.functional.cross_entropy(model(x), y) + 0.15 * (position(model) ** 2).sum()).item()

    before, start = h(), position(model)
    C, g = curvature(model, (x, y), "categorical", 1e-2, 0.3)
    for part in zip(x.split((5, 7)), y.split((5, 7)), strict=True):
        optimizer.accumulate(make_closure(model, *part, "categorical"))
    optimizer.step()
    delta = position(model) - start
    ((damping, change, predicted, _),) = adapted
    assert damping == 1e-2
    assert change == pytest.approx(h() - before, rel=1e-9)
    assert predicted == pytest.approx((g @ delta + 0.5 * delta @ C @ delta).item(), rel=1e-9)


def test_lambda_changes_every_so_many_updates():
    model = make_net(4, 3, activation=None)
    optimizer = build(model, likelihood="gaussian", adaptive_damping=True, damping_every=3, damping=150.0)
    found = []
    for batch in batches(7, "gaussian"):
        step(optimizer, model, batch, "gaussian")
        found.append(optimizer.param_groups[0]["damping"])
    once, twice = 150 * 0.95**3, 150 * 0.95**3 * 0.95**3
    assert found == [150.0, 150.0, once, once, once, twice, twice]


@pytest.mark.parametrize("after", [1e3, float("nan"), float("inf")])
def test_lambda_grows_where_the_objective_went_wrong(after):
    model = make_net(4, 5, 3)
    optimizer = build(model, adaptive_damping=True, damping_every=1, damping=2.0)
    x, y = batches(1)[0]
    runs = []

    def closure():
        output = model(x)
        runs.append(torch.is_grad_enabled())
        return nn.functional.cross_entropy(output, y) + (after if len(runs) == 3 else 0), output

    optimizer.step(closure)
    assert runs == [True, True, True]  # the gradient, F, h(θ + δ)
    assert optimizer.param_groups[0]["damping"] == 2 / 0.95


# γ.


def test_gamma_is_the_best_of_three():
    """Against plain K-FAC damped by γ², and the dense M; over the updates all three outcomes occur."""
    model = make_net(4, 5, 3)
    optimizer = build(model, "alpha", "gaussian", adaptive_gamma=True, gamma_every=2, damping=0.01)
    gamma, outcomes = 0.1, []
    for k, batch in enumerate(batches(12, "gaussian")):
        due = k >= 2 and k % 2 == 0
        tried = [0.95 * gamma, gamma, gamma / 0.95] if due else [gamma]
        C, g = curvature(model, batch, "gaussian", 0.01, 0.0)
        changes = []
        for candidate in tried:
            twin = copy.deepcopy(model)
            natural = step(build(twin, "none", "gaussian", damping=candidate**2), twin, batch, "gaussian")
            changes.append(-(g @ natural) / (natural @ C @ natural) * natural)
        lowest = min(range(len(tried)), key=lambda i: (g @ changes[i]).item())
        assert relative_error(step(optimizer, model, batch, "gaussian"), changes[lowest]) < EXACT
        gamma = tried[lowest]
        assert optimizer.state_dict()["extra"]["adaptation"]["gamma"] == pytest.approx(gamma, rel=1e-12)
        for state in optimizer.state_dict()["extra"]["layers"].values():
            A, G, root = state["input_covariance"], state["gradient_covariance"], state["input_cholesky"]
            pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
            assert relative_error(root @ root.T, A + pi * gamma * torch.eye(len(A), dtype=DTYPE)) < EXACT
        outcomes += [lowest] if due else []
    assert set(outcomes) == {0, 1, 2}


def test_gamma_waits_for_an_inversion_and_starts_at_the_root_of_both_dampings():
    model = make_net(4, 5, 3)
    settings = {"damping": 0.5, "weight_decay": 0.14, "inverses_every": 3, "warmup_updates": 0}
    optimizer = build(model, adaptive_gamma=True, gamma_every=4, **settings)
    tried = []
    original = optimizer._adaptation.gammas
    optimizer._adaptation.gammas = lambda n: tried.append((n, original(n))) or tried[-1][1]
    for batch in batches(14):
        step(optimizer, model, batch)
    assert [(n, len(gammas)) for n, gammas in tried] == [(0, 1), (3, 1), (6, 3), (9, 1), (12, 3)]
    assert tried[0][1] == (pytest.approx(0.8, rel=1e-12),)
    down, same, up = tried[2][1]
    assert (down / same, same / up) == pytest.approx((0.95**2, 0.95**2), rel=1e-12)


def test_gamma_has_a_floor():
    options = {"adaptive_damping": False, "damping_every": 5, "damped_reduction": True}
    options |= {"rescale": "alpha", "adaptive_gamma": True, "gamma_every": 1}
    found = adaptation.Adaptation(make_net(2, 2), "gaussian", AdaptiveOptions(**options), 1e-8).gammas(1)
    assert found[0] == found[1] == 1e-4 < found[2]


# All together.

ALL = {"adaptive_damping": True, "damping_every": 2, "adaptive_gamma": True, "gamma_every": 3, "averaging": 0.8}
ALL |= {"damping": 1.0, "weight_decay": 0.01}


def test_micro_batches_give_the_update_of_their_union():
    models = [make_net(4, 5, 3), make_net(4, 5, 3)]
    whole, parts = (build(model, **ALL) for model in models)
    for x, y in batches(10):
        whole.step(make_closure(models[0], x, y, "categorical"))
        for part in zip(x.split((2, 10)), y.split((2, 10)), strict=True):
            parts.accumulate(make_closure(models[1], *part, "categorical"))
        parts.step()
    torch.testing.assert_close(position(models[1]), position(models[0]), rtol=1e-8, atol=1e-10)
    assert parts.param_groups[0]["damping"] == whole.param_groups[0]["damping"] != 1.0
    assert parts.state_dict()["extra"]["adaptation"]["gamma"] != 1.01**0.5


@pytest.mark.parametrize("done", [1, 2, 3, 7])
def test_a_saved_state_goes_on_bit_for_bit(done):
    settings = ALL | {"inverses_every": 2, "statistics_every": 2, "fisher": "mc", "factor_decay": 0.9}
    model = make_net(4, 5, 3)
    optimizer = build(model, **settings)
    for batch in batches(done):
        step(optimizer, model, batch)
    resumed_model = make_net(4, 5, 3, seed=1)
    resumed = build(resumed_model, seed=5, **settings | {"damping": 77.0})
    resumed_model.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    for batch in batches(8):
        assert torch.equal(step(optimizer, model, batch), step(resumed, resumed_model, batch))
    with optimizer.evaluation_parameters(), resumed.evaluation_parameters():
        assert torch.equal(position(model), position(resumed_model))


def test_the_average_is_what_is_evaluated():
    model = make_net(4, 5, 3)
    optimizer = KFAC(model, likelihood="categorical", averaging=0.8)
    start = position(model)
    with optimizer.evaluation_parameters():
        assert torch.equal(position(model), start)
    average, decays = torch.zeros_like(start), [0, 1 / 2, 2 / 3, 3 / 4, 0.8, 0.8, 0.8]
    for d, batch in zip(decays, batches(7), strict=True):
        step(optimizer, model, batch)
        average = d * average + (1 - d) * position(model)
        current = position(model)
        with optimizer.evaluation_parameters():
            assert relative_error(position(model), average) < EXACT
        assert torch.equal(position(model), current)
    with pytest.raises(MemoryError), optimizer.evaluation_parameters():
        raise MemoryError
    assert torch.equal(position(model), current)


def test_it_gets_where_sgd_does_not():
    """Inputs of unlike scale: a curvature that no single learning rate fits."""
    x, _ = make_batch("gaussian", 60, 6, 3)
    x = x * torch.logspace(0, -2, 6, dtype=DTYPE)
    with torch.no_grad():
        y = 3 * make_net(6, 8, 3, seed=4)(x * torch.logspace(0, 2, 6, dtype=DTYPE))

    def loss_after_150(optimizer_of):
        model = make_net(6, 8, 3)
        optimizer, closure = optimizer_of(model), make_closure(model, x, y, "gaussian")
        for _ in range(150):
            optimizer.step(closure)
        return closure()[0].item()

    options = {"adaptive_damping": True, "adaptive_gamma": True, "damping": 0.01, "factor_decay": 0.95}
    options |= {"inverses_every": 20, "warmup_updates": 3}
    found = loss_after_150(lambda model: build(model, likelihood="gaussian", **options))
    by_sgd = [
        loss_after_150(lambda model, lr=lr: SGD(model, lr=lr, momentum=0.9, likelihood="gaussian"))
        for lr in (0.01, 0.03, 0.1, 0.3, 1.0)
    ]
    assert found < 0.1 * min(by_sgd)  # observed 8e-4 and 0.09; 1.2 before training


@pytest.mark.parametrize(("saved", "own"), [("none", "alpha"), ("alpha", "none")])
def test_a_state_of_the_other_kind_is_refused_before_anything_changes(saved, own):
    fixed = {"likelihood": "gaussian", "kl_clip": None, "momentum": 0.0}
    state = KFAC(make_net(4, 3), lr=0.5, rescale=saved, **fixed).state_dict()
    optimizer = KFAC(make_net(4, 3), lr=0.1, rescale=own, **fixed)
    with pytest.raises(ValueError, match=r"is one of (plain|adaptive) K-FAC, this optimizer is (plain|adaptive)"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_adaptive_kfac_says_what_it_has_adapted():
    model = network()
    optimizer = build_entry(OPTIMIZERS.get("kfac_adaptive"), model, damping_every=1, gamma_every=1)
    start = optimizer.readings()
    train(optimizer, model, 12)
    readings = optimizer.readings()
    assert readings["damping"] == optimizer.param_groups[0]["damping"] != start["damping"]
    assert readings["gamma"] == optimizer._adaptation.gamma != start["gamma"]
    assert readings["alpha"] > 0
    assert readings["momentum"] != 0
    assert start["momentum"] == 0
    assert not {"alpha"} & (set(start) | set(optimizer.readings()))  # means over updates
