"""EKFAC's second moments, basis and updates against dense Fisher blocks and against curvlinops."""

from __future__ import annotations

import pytest
import torch
from curvlinops import EKFACLinearOperator, FisherType
from torch import nn

from kftune.optim import EKFAC, KFAC
from kftune.optim.curvature.rows import Rows
from kftune.optim.preconditioning import eigenbasis as numerics
from kftune.optim.preconditioning.eigenbasis import Basis, add_second_moments, moved
from tests.optim._dense import (
    DTYPE,
    empirical_fisher_block,
    ggn_block,
    layer_gradient,
    layer_matrix,
    make_closure,
    make_loss,
    relative_error,
    stored_factors,
    unvec,
    vec,
)

EXACT = 1e-10  # relative, float64; observed at most 1e-13
EVERY_UPDATE = {"statistics_every": 1, "scalings_every": 1, "inverses_every": 1}
PLAIN = {"momentum": 0.0, "kl_clip": None}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


class Pooled(nn.Module):
    """A classifier of sequences whose second layer is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.twice(self.twice(self.first(x).tanh()).tanh()).mean(dim=1))


NETWORKS = {
    "mlp": lambda: (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), random(9, 4)),
    "convolutions": lambda: (
        nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False),
            nn.Tanh(),
            nn.Conv2d(3, 4, 2),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        random(7, 2, 5, 6),
    ),
    "sequences": lambda: (Pooled(), random(8, 5, 3)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)
every_likelihood = pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])


def problem(name, likelihood="categorical", *, n=None):
    torch.manual_seed(0)
    model, x = NETWORKS[name]()
    x, y = x[:n], random(len(x), 3, seed=1)[:n]
    target = {"categorical": y.argmax(dim=1), "gaussian": y, "bernoulli": (y > 0).to(DTYPE)}[likelihood]
    return model.to(DTYPE), x, target


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def state(optimizer, name):
    return optimizer.state_dict()["extra"]["layers"][name]


def gather(model, x, y, likelihood="categorical", **settings):
    """An optimizer after one update that left the parameters alone."""
    optimizer = EKFAC(model, lr=0.0, likelihood=likelihood, **{"fisher": "exact"} | settings)
    optimizer.step(make_closure(model, x, y, likelihood))
    return optimizer


def rotation(own):
    """(U, vec S): the block is U diag(S) Uᵀ in column-stacking vec."""
    return torch.kron(own["input_vectors"], own["gradient_vectors"]), vec(own["scalings"])


@every_likelihood
@every_network
def test_scalings_are_the_diagonal_of_the_exact_block_in_the_basis(name, likelihood):
    model, x, y = problem(name, likelihood)
    optimizer = gather(model, x, y, likelihood)
    for layer in layers(model):
        F = ggn_block(model, layer, x, y, likelihood)
        U, S = rotation(state(optimizer, layer))
        assert relative_error(S, (U.T @ F @ U).diagonal()) < EXACT
        assert S.sum().item() == pytest.approx(F.trace().item(), rel=EXACT)


@every_network
def test_scalings_of_the_empirical_fisher(name):
    model, x, y = problem(name)
    optimizer = gather(model, x, y, fisher="empirical")
    for layer in layers(model):
        U, S = rotation(state(optimizer, layer))
        F = empirical_fisher_block(model, layer, x, y, "categorical")
        assert relative_error(S, (U.T @ F @ U).diagonal()) < EXACT


def test_drawn_labels_approach_the_exact_fisher():
    model, x, y = problem("mlp")
    exact = gather(model, x, y)
    drawn = EKFAC(model, lr=0.0, likelihood="categorical", fisher="mc", factor_decay=1.0, **EVERY_UPDATE)
    for _ in range(200):  # traces have a standard error of 2%
        drawn.step(make_closure(model, x, y, "categorical"))
    for layer in layers(model):
        found, expected = (state(o, layer)["scalings"].sum().item() for o in (drawn, exact))
        assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@every_network
def test_the_error_is_below_that_of_kfac(name, sharing):
    """In Frobenius norm: the diagonal is the best there is in K-FAC's basis."""
    model, x, y = problem(name)
    optimizer = gather(model, x, y, weight_sharing=sharing)
    for layer in layers(model):
        F = ggn_block(model, layer, x, y, "categorical")
        U, S = rotation(state(optimizer, layer))
        A, G = stored_factors(optimizer, layer)
        assert (U @ S.diag() @ U.T - F).norm() < 0.999 * (torch.kron(A, G) - F).norm()


@pytest.mark.parametrize("name", ["convolutions", "sequences"])
def test_squares_summed_over_positions_would_be_another_thing(name):
    model, x, y = problem(name)
    seen = {}

    class Seeing(EKFAC):
        def _add_rows(self, rows):
            for layer, own in rows.items():
                seen.setdefault(layer, []).append(own)
            super()._add_rows(rows)

    optimizer = Seeing(model, lr=0.0, likelihood="categorical", fisher="exact")
    optimizer.step(make_closure(model, x, y, "categorical"))
    some = {"convolutions": ("0", "2"), "sequences": ("first", "twice")}[name]
    for layer in some:
        own = state(optimizer, layer)
        wrong = sum(
            torch.einsum(
                "ntg,nta->ga",
                (rows.gradients @ own["gradient_vectors"]).square(),
                (rows.inputs @ own["input_vectors"]).square(),
            )
            for rows in seen[layer]
        ) / len(x)
        assert relative_error(wrong, own["scalings"]) > 0.1


@pytest.mark.parametrize("n_positions", [1, 2, 40])
def test_second_moments_by_any_order_and_in_parts(monkeypatch, n_positions):
    """40 positions of a 3 × 4 layer rotate gradients, 2 rotate rows."""
    rows = Rows(random(6, n_positions, 4), random(6, n_positions, 3, seed=1), (n_positions,))
    basis = Basis(torch.linalg.qr(random(4, 4, seed=2))[0], torch.linalg.qr(random(3, 3, seed=3))[0])
    per_example = torch.einsum("ntg,nta->nga", rows.gradients, rows.inputs)
    expected = (basis.gradient_vectors.T @ per_example @ basis.input_vectors).square().sum(dim=0)
    for chunk in (1, 24, 10**6):
        monkeypatch.setattr(numerics, "_CHUNK", chunk)
        total = torch.ones(3, 4, dtype=DTYPE)
        add_second_moments(total, rows, basis)
        assert relative_error(total - 1, expected) < EXACT


def change(optimizer, model, closure, *, accumulate=False):
    """Layer → what was subtracted from [W b]."""
    before = {name: layer_matrix(module) for name, module in layers(model).items()}
    if accumulate:
        optimizer.accumulate(closure)
        optimizer.step()
    else:
        optimizer.step(closure)
    return {name: before[name] - layer_matrix(module) for name, module in layers(model).items()}


@pytest.mark.parametrize("n", [2, None])  # two examples: by the thin factors of the gradient
@every_network
def test_update_is_the_dense_solve(name, n):
    model, x, y = problem(name, n=n)
    make_loss("categorical")(model(x), y).backward()
    gradients = {layer: layer_gradient(module) for layer, module in layers(model).items()}
    optimizer = EKFAC(model, lr=1.0, damping=0.03, likelihood="categorical", fisher="exact", **PLAIN)
    found = change(optimizer, model, make_closure(model, x, y, "categorical"))
    for layer, P in found.items():
        U, S = rotation(state(optimizer, layer))
        block = U @ (S + 0.03).diag() @ U.T
        assert relative_error(P, unvec(torch.linalg.solve(block, vec(gradients[layer])), P)) < EXACT


@pytest.mark.parametrize("n", [2, None])
@every_network
def test_thin_factors_and_the_matrix_give_one_update(name, n):
    found = []
    for accumulate in (False, True):
        model, x, y = problem(name, n=n)
        optimizer = EKFAC(model, lr=1.0, likelihood="categorical", fisher="exact", kl_clip=1e-4)
        found.append(change(optimizer, model, make_closure(model, x, y, "categorical"), accumulate=accumulate))
    assert any(p.grad is not None for p in model.parameters())
    for layer, P in found[0].items():
        assert relative_error(P, found[1][layer]) < EXACT


@pytest.mark.parametrize("n", [2, None])
@every_network
def test_with_kfacs_eigenvalues_it_is_kfac_with_exact_damping(name, n):
    found = []
    for cls, settings in ((EKFAC, {}), (KFAC, {"damping_method": "exact"})):
        model, x, y = problem(name)
        optimizer = cls(
            model, lr=1.0, damping=0.02, likelihood="categorical", fisher="exact", warmup_updates=0, **settings, **PLAIN
        )
        closure = make_closure(model, x, y, "categorical")
        optimizer.step(closure)
        if cls is EKFAC:
            saved = optimizer.state_dict()
            for own in saved["extra"]["layers"].values():
                e_A, e_G = (torch.linalg.eigvalsh(own[f"{side}_covariance"]) for side in ("input", "gradient"))
                own["scalings"] = torch.outer(e_G.clamp(min=0), e_A.clamp(min=0))
            optimizer.load_state_dict(saved)
        model.load_state_dict(problem(name)[0].state_dict())
        found.append(change(optimizer, model, make_closure(model, x[:n], y[:n], "categorical")))
    for layer, P in found[0].items():
        assert relative_error(P, found[1][layer]) < EXACT


def test_its_own_eigenvalues_are_not_kfacs():
    changes = []
    for cls, settings in ((EKFAC, {}), (KFAC, {"damping_method": "exact"})):
        model, x, y = problem("mlp")
        optimizer = cls(model, lr=1.0, likelihood="categorical", fisher="exact", **settings, **PLAIN)
        changes.append(change(optimizer, model, make_closure(model, x, y, "categorical"))["0"])
    assert relative_error(*changes) > 1e-2


@pytest.mark.parametrize("split", [(13, 12), (1, 20, 4)])
def test_micro_batches_of_images(split):
    found = []
    for parts in ((25,), split):
        model, _, _ = problem("convolutions")
        x, y = random(25, 2, 5, 6), random(25, 3, seed=1).argmax(dim=1)
        periods = {"statistics_every": 1, "scalings_every": 1, "inverses_every": 2, "warmup_updates": 0}
        optimizer = EKFAC(model, lr=0.1, likelihood="categorical", fisher="exact", **periods, **PLAIN)
        for _ in range(3):
            buffer = torch.empty(max(parts), *x.shape[1:], dtype=DTYPE)  # one memory for all micro-batches
            for images, labels in zip(x.split(parts), y.split(parts), strict=True):
                own = buffer[: len(images)].copy_(images)
                optimizer.accumulate(make_closure(model, own, labels, "categorical"))
            optimizer.step()
        found.append(model)
    for ours, theirs in zip(*(model.parameters() for model in found), strict=True):
        assert relative_error(ours, theirs) < EXACT


def test_scalings_are_averaged_in_a_basis_that_is_kept():
    decay, settings = 0.6, {"statistics_every": 5, "scalings_every": 1, "inverses_every": 10, "warmup_updates": 0}
    model, x, y = problem("mlp")
    optimizer = EKFAC(model, lr=0.1, likelihood="categorical", fisher="exact", factor_decay=decay, **settings)
    average, first_basis = None, None
    for k in range(1, 6):
        F = ggn_block(model, "0", x, y, "categorical")
        optimizer.step(make_closure(model, x, y, "categorical"))
        U, S = rotation(state(optimizer, "0"))
        first_basis = U if first_basis is None else first_basis
        assert torch.equal(U, first_basis)
        own, weight = (U.T @ F @ U).diagonal(), min(1 - 1 / k, decay)
        average = own if average is None else weight * average + (1 - weight) * own
        assert relative_error(S, average) < EXACT


@pytest.mark.parametrize("basis_change", ["move", "reset"])
def test_what_scalings_become_in_a_new_basis(basis_change):
    model, x, y = problem("mlp")
    optimizer = EKFAC(
        model, lr=0.5, likelihood="categorical", fisher="exact", basis_change=basis_change, **EVERY_UPDATE
    )
    optimizer.step(make_closure(model, x, y, "categorical"))
    U, S = rotation({key: value.clone() for key, value in state(optimizer, "0").items()})
    x, y = random(9, 4, seed=5), y.flip(0)
    own = ggn_block(model, "0", x, y, "categorical")
    optimizer.step(make_closure(model, x, y, "categorical"))
    new_U, new_S = rotation(state(optimizer, "0"))
    assert relative_error(new_U, U) > 1e-2
    before = U @ S.diag() @ U.T if basis_change == "move" else torch.kron(*stored_factors(optimizer, "0"))
    expected = (new_U.T @ (before + own) @ new_U).diagonal() / 2
    assert relative_error(new_S, expected) < EXACT


def test_moving_keeps_the_trace_and_the_same_basis_changes_nothing():
    S = random(3, 4).square()
    old, new = (
        Basis(torch.linalg.qr(random(4, 4, seed=i))[0], torch.linalg.qr(random(3, 3, seed=i + 1))[0]) for i in (1, 3)
    )
    assert relative_error(moved(S, old, old), S) < EXACT
    assert moved(S, old, new).sum().item() == pytest.approx(S.sum().item(), rel=EXACT)


def test_periods():
    model, x, y = problem("mlp")
    settings = {"statistics_every": 3, "scalings_every": 2, "inverses_every": 6, "warmup_updates": 0}
    optimizer = EKFAC(model, lr=0.01, likelihood="categorical", fisher="exact", **settings)
    renewed, last = {"input_covariance": [], "scalings": [], "input_vectors": []}, {}
    for step in range(13):
        optimizer.step(make_closure(model, x, y, "categorical"))
        now = {key: value.clone() for key, value in state(optimizer, "2").items()}
        for key, steps in renewed.items():
            if key not in last or not torch.equal(now[key], last[key]):
                steps.append(step)
        last = now
    assert renewed == {
        "input_covariance": [0, 3, 6, 9, 12],
        "scalings": [0, 2, 4, 6, 8, 10, 12],
        "input_vectors": [0, 6, 12],
    }


FISHERS = {"exact": FisherType.TYPE2, "empirical": FisherType.EMPIRICAL}


def of_curvlinops(model, x, y, fisher):
    return EKFACLinearOperator(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, y)],
        fisher_type=FISHERS[fisher],
        separate_weight_and_bias=False,
        check_deterministic=False,
    )


@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_block_and_scalings_are_those_of_curvlinops(name, fisher):
    model, x, y = problem(name)
    optimizer = gather(model, x, y, fisher=fisher)
    theirs = of_curvlinops(model, x, y, fisher)
    theirs.compute_kronecker_factors()
    for layer in layers(model):
        A, G = stored_factors(optimizer, layer)
        assert relative_error(A, theirs._input_covariances[layer]) < EXACT
        assert relative_error(G, theirs._gradient_covariances[layer]) < EXACT
        # Vectors of equal eigenvalues (several are 0) are anybody's choice: S is compared in ours.
        theirs._input_covariances_eigenvectors[layer] = state(optimizer, layer)["input_vectors"]
        theirs._gradient_covariances_eigenvectors[layer] = state(optimizer, layer)["gradient_vectors"]
    theirs.compute_eigenvalue_correction()
    for layer, S in theirs._corrected_eigenvalues.items():
        only = next(iter(S.values())) if isinstance(S, dict) else S  # by parameter where there is no bias
        assert relative_error(state(optimizer, layer)["scalings"], only) < EXACT


@pytest.mark.parametrize("fisher", FISHERS)
def test_the_preconditioned_gradient_is_that_of_curvlinops(fisher):
    """Their operator applied to our P, with the damping added, must give the gradient back."""
    model, x, y = problem("mlp")
    before = {p: p.detach().clone() for p in model.parameters()}
    theirs = of_curvlinops(model, x, y, fisher)
    theirs @ [torch.zeros_like(p) for p in model.parameters()]
    make_loss("categorical")(model(x), y).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer = EKFAC(model, lr=1.0, damping=0.03, likelihood="categorical", fisher=fisher, **PLAIN)
    optimizer.step(make_closure(model, x, y, "categorical"))
    P = [before[p] - p.detach() for p in model.parameters()]
    for product, own, gradient in zip(theirs @ P, P, gradients, strict=True):
        assert relative_error(product + 0.03 * own, gradient) < 1e-9
