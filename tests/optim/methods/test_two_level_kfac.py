"""Two-level K-FAC: the coarse matrix against dense sums of Fisher blocks, the update against dense solves."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from kftune.optim import KFAC, TwoLevelKFAC
from kftune.optim.curvature.patches import Window, patch_sums, patches
from kftune.optim.preconditioning.coarse import Map, cross_sums, damped_inverse
from kftune.optim.preconditioning.damping import split_damping
from tests.optim._dense import (
    DTYPE,
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
from tests.optim._dense_rows import dense_rows

SUMS = 1e-13  # relative, float64; observed at most 5e-15: sums of the same numbers in another order
EXACT = 1e-10  # relative, float64; observed at most 3e-14


def coarse_fisher(optimizer):
    moments = optimizer.state_dict()["extra"]["coarse_moments"]
    return moments["inputs"]["values"] * moments["gradients"]["values"]


def stepped(model, x, y, likelihood="categorical", cls=TwoLevelKFAC, **hyperparameters):
    settings = {"lr": 0.5, "momentum": 0.0, "kl_clip": None, "fisher": "exact"} | hyperparameters
    optimizer = cls(model, likelihood=likelihood, **settings)
    optimizer.step(make_closure(model, x, y, likelihood))
    return optimizer


def dense_fisher(rows):
    """Pair of layers → Kronecker-factored block, with explicit cross-covariances; layers of equal T."""
    blocks = {}
    for (i, (a, g)), (j, (b, h)) in itertools.product(rows.items(), rows.items()):
        A = torch.einsum("ntp,ntq->pq", a, b) / (a.shape[0] * a.shape[1])
        G = torch.einsum("cntp,cntq->pq", g, h) / a.shape[0]
        blocks[i, j] = torch.kron(A, G)
    return blocks


def block_sums(blocks):
    """zᵢᵀ F z_j."""
    names = list(dict.fromkeys(i for i, _ in blocks))
    return torch.stack([torch.stack([blocks[i, j].sum() for j in names]) for i in names])


class SameSize(nn.Module):
    """Convolutions, one of them grouped, that keep the resolution; a mean at the end."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)
        self.last = nn.Conv2d(6, 3, 1)
        self.double()

    def forward(self, x):
        return self.last(torch.tanh(self.grouped(torch.tanh(self.first(x))))).mean(dim=(2, 3))


class Sequences(nn.Module):
    """Linear layers on sequences."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))).mean(dim=1)


def case(kind):
    torch.manual_seed(0)
    labels = torch.randint(3, (10,))
    if kind == "images":
        return SameSize(), torch.randn(10, 2, 5, 4, dtype=DTYPE), labels
    if kind == "sequences":
        return Sequences(), torch.randn(10, 7, 4, dtype=DTYPE), labels
    return make_net(4, 6, 5, 3, bias=kind == "bias"), torch.randn(10, 4, dtype=DTYPE), labels


@pytest.mark.parametrize("kind", ["bias", "no bias", "sequences", "images"])
def test_coarse_matrix_is_the_dense_blocks_sums(kind):
    model, x, y = case(kind)
    expected = block_sums(dense_fisher(dense_rows(model, x, "categorical")))
    optimizer = stepped(model, x, y)
    assert list(optimizer.state_dict()["extra"]["layers"]) == list(dense_rows(model, x, "categorical"))
    assert relative_error(coarse_fisher(optimizer), expected) < SUMS


def test_of_a_deep_linear_network_it_is_the_exact_fisher_matrix_between_any_layers():
    """There activations and gradients are independent, so all Kronecker-factored blocks are exact."""
    model = make_net(4, 6, 5, 3, activation=None)
    x, y = make_batch("gaussian", 9, 4, 3)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    jacobians = vmap(jacrev(lambda p, x: functional_call(model, p, (x[None],))[0]), in_dims=(None, 0))(parameters, x)
    sums = {
        layer: sum(jacobians[f"{layer}.{part}"].flatten(2).sum(dim=2) for part in ("weight", "bias"))
        for layer in ("0", "1", "2")
    }
    J = torch.stack(list(sums.values()))
    expected = torch.einsum("ino,jno->ij", J, J) / len(x) * 2 / 3
    assert relative_error(coarse_fisher(stepped(model, x, y, "gaussian")), expected) < SUMS


def test_reduce_sums_reduced_rows():
    model, x, y = case("sequences")
    rows = dense_rows(model, x, "categorical")
    reduced = {n: (a.mean(dim=1, keepdim=True), g.sum(dim=2, keepdim=True)) for n, (a, g) in rows.items()}
    optimizer = stepped(model, x, y, weight_sharing="reduce")
    assert relative_error(coarse_fisher(optimizer), block_sums(dense_fisher(reduced))) < SUMS
    assert relative_error(coarse_fisher(optimizer), block_sums(dense_fisher(rows))) > 0.1


@pytest.mark.parametrize("fisher", ["exact", "mc", "empirical"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_the_diagonal_is_the_sum_of_a_layers_own_block_at_any_resolution(fisher, sharing):
    model = Resolutions()
    x, y = torch.randn(6, 2, 8, 8, dtype=DTYPE), torch.randint(3, (6,))
    optimizer = TwoLevelKFAC(model, likelihood="categorical", fisher=fisher, weight_sharing=sharing)
    for part in zip(x.split((2, 4)), y.split((2, 4)), strict=True):
        optimizer.accumulate(make_closure(model, *part, "categorical"))
    optimizer.step()
    state = optimizer.state_dict()["extra"]["layers"]
    expected = [own["input_covariance"].sum() * own["gradient_covariance"].sum() for own in state.values()]
    assert relative_error(coarse_fisher(optimizer).diagonal(), torch.stack(expected)) < SUMS


class Resolutions(nn.Module):
    """8 × 8, 4 × 4, 2 × 2 and one position."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=2, bias=False)
        self.c = nn.Conv2d(4, 3, 2, stride=2)
        self.d = nn.Linear(12, 3)
        self.double()

    def forward(self, x):
        return self.d(self.c(torch.relu(self.b(torch.relu(self.a(x))))).flatten(1))


def test_unlike_resolutions_meet_at_the_coarser_grids_positions():
    model = Resolutions()
    x, y = torch.randn(6, 2, 8, 8, dtype=DTYPE), torch.randint(3, (6,))
    rows = dense_rows(model, x, "categorical")
    sides = {"a": 8, "b[0]": 4, "b[1]": 4, "c": 2, "d": 1}
    expected = torch.zeros(5, 5, dtype=DTYPE)
    for (i, p), (j, q) in itertools.product(enumerate(sides), enumerate(sides)):
        common = min(sides[p], sides[q])
        alpha, gamma = [], []
        for name in (p, q):
            side, step = sides[name], sides[name] // common
            a, g = rows[name]
            alpha.append(a.sum(dim=-1).reshape(6, side, side)[:, ::step, ::step])
            gamma.append(g.sum(dim=-1).reshape(3, 6, side, side)[:, :, ::step, ::step])
        inputs = (alpha[0] * alpha[1]).sum() / (6 * sides[p] * sides[q])
        expected[i, j] = inputs * (gamma[0] * gamma[1]).sum() / 6
    assert relative_error(coarse_fisher(stepped(model, x, y)), expected) < SUMS
    assert torch.linalg.eigvalsh(expected).min() > 0


def correlated_maps(sides, seed):
    """Maps that follow one pattern where they can: each is the finest one, seen at its own grid, plus little noise."""
    g = torch.Generator().manual_seed(seed)
    finest = torch.randn(1, 64, generator=g, dtype=DTYPE)
    seen = [finest[:, torch.arange(s) * 64 // s] for s in sides]
    return [Map(own + 0.01 * torch.randn(own.shape, generator=g, dtype=DTYPE), (own.shape[1],)) for own in seen]


def smallest_eigenvalue(sides, seed):
    values = torch.linalg.eigvalsh(cross_sums(correlated_maps(sides, seed)))
    return (values[0] / values[-1]).item()


def test_nested_sizes_give_a_semi_definite_matrix_others_need_not():
    assert all(smallest_eigenvalue((8, 4, 2, 1), seed) > -1e-15 for seed in range(100))
    assert min(smallest_eigenvalue((7, 5, 3), seed) for seed in range(60)) < -0.01


@pytest.mark.parametrize("damping", [[0.1, 0.1, 0.1], [0.1, 3.0, 0.5]])
def test_negative_eigenvalues_are_clipped(damping):
    seed = min(range(60), key=lambda seed: smallest_eigenvalue((7, 5, 3), seed))
    fisher, D = cross_sums(correlated_maps((7, 5, 3), seed)), torch.tensor(damping, dtype=DTYPE)
    scaled = fisher / torch.outer(D.sqrt(), D.sqrt())
    values, vectors = torch.linalg.eigh(scaled)
    assert values[0] < -0.1
    clipped = D.sqrt()[:, None] * (vectors * values.clamp(min=0)) @ vectors.T * D.sqrt()
    assert relative_error(damped_inverse(fisher, D), torch.linalg.inv(clipped + torch.diag(D))) < EXACT
    gram = fisher @ fisher.T
    assert relative_error(damped_inverse(gram, D), torch.linalg.inv(gram + torch.diag(D))) < EXACT


@pytest.mark.parametrize("coarse_damping", ["identity", "sizes"])
@pytest.mark.parametrize("method", ["factored", "exact"])
def test_update_is_the_dense_two_level_solve(method, coarse_damping):
    damping, fine, coarse = 0.05, 0.7, 1.3
    model = make_net(4, 6, 5, 3)
    x, y = make_batch("gaussian", 12, 4, 3)
    rows = dense_rows(model, x, "gaussian")
    before = {name: layer_matrix(module) for name, module in linear_layers(model).items()}
    settings = {"damping": damping, "damping_method": method, "coarse_damping": coarse_damping}
    optimizer = stepped(model, x, y, "gaussian", fine_weight=fine, coarse_weight=coarse, **settings)
    gradients = {name: layer_gradient(module) for name, module in linear_layers(model).items()}
    sizes = [V.numel() for V in gradients.values()]
    Z = torch.block_diag(*[torch.ones(1, n, dtype=DTYPE) for n in sizes])
    blocks = dense_fisher(rows)
    F = torch.cat([torch.cat([blocks[i, j] for j in rows], dim=1) for i in rows])
    V = torch.cat([vec(V) for V in gradients.values()])
    on_coarse = Z @ Z.T if coarse_damping == "sizes" else torch.eye(3, dtype=DTYPE)
    correction = (Z.T @ torch.linalg.solve(Z @ F @ Z.T + damping * on_coarse, Z @ V)).split(sizes)
    for (name, gradient), c in zip(gradients.items(), correction, strict=True):
        A, G = stored_factors(optimizer, name)
        if method == "factored":
            on_A, on_G = split_damping(A, G, damping, method)
            block = torch.kron(A + on_A * torch.eye(len(A), dtype=DTYPE), G + on_G * torch.eye(len(G), dtype=DTYPE))
        else:
            block = torch.kron(A, G) + damping * torch.eye(gradient.numel(), dtype=DTYPE)
        expected = unvec(fine * torch.linalg.solve(block, vec(gradient)) + coarse * c, gradient)
        found = (before[name] - layer_matrix(model.get_submodule(name))) / 0.5
        assert relative_error(found, expected) < EXACT
        assert relative_error(found, expected - unvec(coarse * c, gradient)) > 1e-2


def test_sums_of_a_softmax_layer_vanish():
    """p − e adds up to nothing: the last layer takes no part in the coarse problem of a classifier."""
    x, y = make_batch("categorical", 12, 4, 3)
    fisher = coarse_fisher(stepped(make_net(4, 6, 3), x, y))
    assert fisher[1].abs().max() < 1e-14 * fisher[0, 0]


def trained(cls, batch=24, accumulate=False, **hyperparameters):
    model = make_net(6, 9, 7, 3)
    optimizer = cls(model, likelihood="categorical", fisher="mc", inverses_every=10, **hyperparameters)
    for step in range(6):
        closure = make_closure(model, *make_batch("categorical", batch, 6, 3, seed=step), "categorical")
        if accumulate:
            optimizer.accumulate(closure)
            optimizer.step()
        else:
            optimizer.step(closure)
    thin = any(p.grad is None for p in model.parameters())
    return torch.cat([p.detach().flatten() for p in model.parameters()]), thin


@pytest.mark.parametrize("method", ["factored", "exact", "plain"])
@pytest.mark.parametrize("kl_clip", [1e-3, None])
def test_without_a_coarse_level_it_is_kfac(method, kl_clip):
    settings = {"damping_method": method, "kl_clip": kl_clip}
    found, expected = trained(TwoLevelKFAC, coarse_weight=0.0, **settings)[0], trained(KFAC, **settings)[0]
    assert relative_error(found, expected) < 1e-14
    assert relative_error(trained(TwoLevelKFAC, **settings)[0], expected) > 1e-3


@pytest.mark.parametrize("kl_clip", [1e-4, None])
def test_two_thin_factors_give_the_matrix_update(kl_clip):
    found, thin = trained(TwoLevelKFAC, batch=3, kl_clip=kl_clip)
    expected, matrix = trained(TwoLevelKFAC, batch=3, kl_clip=kl_clip, accumulate=True)
    assert (thin, matrix) == (True, False)
    assert relative_error(found, expected) < EXACT


@pytest.mark.parametrize("n", [2, 40])  # with thin factors, and without
def test_kl_clip_is_on_the_sum_of_both_levels(n):
    kappa, lr, steps = 1e-4, 2.0, {}
    x, y = make_batch("categorical", n, 6, 3)
    for clip in (None, kappa):
        model = make_net(6, 9, 3)
        before = torch.cat([layer_matrix(m).flatten() for m in linear_layers(model).values()])
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
        pairs = zip(gradients[::2], gradients[1::2], strict=True)
        V = torch.cat([torch.cat([w, b[:, None]], dim=1).flatten() for w, b in pairs])
        stepped(model, x, y, lr=lr, kl_clip=clip)
        steps[clip] = before - torch.cat([layer_matrix(m).flatten() for m in linear_layers(model).values()])
    nu = (steps[kappa].norm() / steps[None].norm()).item()
    assert nu < 0.9
    assert lr**2 * nu**2 * (steps[None] / lr @ V).item() == pytest.approx(kappa, rel=1e-9)


def test_running_averages_are_those_of_the_factors():
    """The diagonal of S_A is the sum of A at any time; the same batch again leaves everything as it is."""
    model = make_net(4, 6, 3)
    settings = {"fisher": "exact", "factor_decay": 0.6, "statistics_every": 2, "inverses_every": 4, "warmup_updates": 0}
    optimizer = TwoLevelKFAC(model, lr=0.0, likelihood="categorical", **settings)
    for step in range(7):
        x, y = make_batch("categorical", 8, 4, 3, seed=step)
        optimizer.step(make_closure(model, x, y, "categorical"))
        moments = optimizer.state_dict()["extra"]["coarse_moments"]
        for side, number in (("inputs", 0), ("gradients", 1)):
            sums = torch.stack([stored_factors(optimizer, name)[number].sum() for name in ("0", "2")])
            assert relative_error(moments[side]["values"].diagonal(), sums) < SUMS
    frozen = TwoLevelKFAC(model, lr=0.0, likelihood="categorical", fisher="exact", statistics_every=1)
    closure = make_closure(model, x, y, "categorical")
    frozen.step(closure)
    first = coarse_fisher(frozen).clone()
    for _ in range(20):
        frozen.step(closure)
    assert relative_error(coarse_fisher(frozen), first) < SUMS


class Branches(nn.Module):
    """A module used twice, and one that is not always used."""

    def __init__(self):
        super().__init__()
        self.twice, self.sometimes, self.last = (nn.Linear(4, n).double() for n in (4, 4, 3))
        self.both = False

    def forward(self, x):
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.last(self.sometimes(x) if self.both else x)


def test_modules_used_twice_or_not_always():
    model = Branches()
    x, y = make_batch("categorical", 8, 4, 3)
    optimizer = TwoLevelKFAC(model, lr=0.1, likelihood="categorical", fisher="exact", statistics_every=1)
    before = model.sometimes.weight.detach().clone()
    optimizer.step(make_closure(model, x, y, "categorical"))
    assert not coarse_fisher(optimizer)[1].any()
    assert torch.equal(model.sometimes.weight, before)
    model.both = True
    for _ in range(3):
        optimizer.step(make_closure(model, x, y, "categorical"))
    assert coarse_fisher(optimizer).all()
    state = optimizer.state_dict()["extra"]["layers"]
    expected = [own["input_covariance"].sum() * own["gradient_covariance"].sum() for own in state.values()]
    assert relative_error(coarse_fisher(optimizer).diagonal(), torch.stack(expected)) < SUMS


def test_rows_that_belong_to_no_example_are_refused():
    layer, table = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=DTYPE)
    model = nn.ModuleDict({"table": layer})
    optimizer = TwoLevelKFAC(model, likelihood="categorical")

    def closure():
        output = torch.ones(3, 5, dtype=DTYPE) @ layer(table)
        return nn.functional.cross_entropy(output, torch.tensor([0, 1, 2])), output

    with pytest.raises(RuntimeError, match="'table' was given 5 rows, which is no multiple of the 3 examples"):
        optimizer.step(closure)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_patch_sums_are_the_patches_sums(mode):
    module = nn.Conv2d(3, 2, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2), padding_mode=mode)
    x = torch.randn(4, 3, 7, 6, dtype=DTYPE)
    rows = patches(x, Window.of(module))
    torch.testing.assert_close(patch_sums(x, Window.of(module)).flatten(1), rows.sum(dim=2))


def test_a_resumed_run_goes_on_bit_for_bit_on_images():
    torch.manual_seed(0)
    models = [Resolutions().float(), Resolutions().float()]
    x, y = torch.randn(6, 2, 8, 8), torch.randint(3, (6,))
    one, other = (TwoLevelKFAC(model, likelihood="categorical", statistics_every=2) for model in models)
    for _ in range(3):
        one.step(make_closure(models[0], x, y, "categorical"))
    models[1].load_state_dict(models[0].state_dict())
    other.load_state_dict(one.state_dict())
    for _ in range(5):
        for model, optimizer in zip(models, (one, other), strict=True):
            optimizer.step(make_closure(model, x, y, "categorical"))
    for found, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(found, expected)
        assert torch.isfinite(found).all()
