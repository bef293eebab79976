"""Muon is torch's on matrices, and torch's AdamW on everything else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.errors import DivergenceError
from kftune.optim.methods.muon import Muon, lr_factor, orthogonalize
from kftune.problems.networks.transformer import Transformer
from tests.optim._dense import DTYPE, make_batch, make_closure, make_net, relative_error

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def convolutional(seed=0, dtype=DTYPE):
    """Muon's by default: the convolutions and the first linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Tanh(), nn.Conv2d(5, 4, 2), nn.Flatten(),
        nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 3),
    ).to(dtype)  # fmt: skip


def images(seed):
    x, y = make_batch("categorical", 8, 2 * 5 * 5, 3, seed=seed)
    return x.reshape(8, 2, 5, 5), y


def train_reference(model, muon_names, steps, *, lr, ratio, weight_decay, batches, **settings):
    """torch.optim.Muon on flattened copies of the named parameters, torch.optim.AdamW on the rest."""
    named = dict(model.named_parameters())
    flat = {name: nn.Parameter(named[name].detach().flatten(1).clone()) for name in muon_names}
    muon = torch.optim.Muon(flat.values(), lr=lr, weight_decay=weight_decay, **settings)
    rest = [p for name, p in named.items() if name not in muon_names]
    adamw = torch.optim.AdamW(rest, lr=ratio * lr, weight_decay=weight_decay, fused=True)
    for step in range(steps):
        x, y = batches(step)
        model.zero_grad()
        nn.functional.cross_entropy(model(x.to(rest[0].dtype)), y).backward()
        for name, p in flat.items():
            p.grad = named[name].grad.flatten(1)
        muon.step()
        adamw.step()
        with torch.no_grad():
            for name, p in flat.items():
                named[name].copy_(p.view_as(named[name]))


@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("settings", [{}, {"nesterov": False, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}])
def test_it_is_torchs_to_the_last_bit(settings, dtype):
    ours, theirs = convolutional(dtype=dtype), convolutional(dtype=dtype)
    optimizer = Muon(ours, lr=0.02, adamw_lr_ratio=0.3, weight_decay=0.2, ns_dtype="bfloat16", **settings)
    taken = [name for name, rule in optimizer.coverage().items() if rule == "Muon"]
    assert taken == ["0.weight", "3.weight", "5.weight"]
    train_reference(theirs, taken, 6, lr=0.02, ratio=0.3, weight_decay=0.2, batches=images, **settings)
    for step in range(6):
        x, y = images(step)
        optimizer.step(make_closure(ours, x.to(dtype), y, "categorical"))
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_defaults_are_torchs():
    reference = torch.optim.Muon([nn.Parameter(torch.zeros(2, 2))]).defaults
    optimizer = Muon(make_net(4, 5, 3))
    ours = optimizer.defaults | {
        "ns_coefficients": optimizer._coefficients, "ns_steps": optimizer._ns_steps, "eps": optimizer._eps,
    }  # fmt: skip
    for name in ("lr", "weight_decay", "momentum", "nesterov", "ns_coefficients", "eps", "ns_steps"):
        assert ours[name] == reference[name], name
    assert optimizer._adjust_lr_fn == "original"  # torch's None


def test_the_parameters_own_precision_differs_from_bfloat16_by_its_rounding():
    models = [make_net(6, 8, 8, 3), make_net(6, 8, 8, 3)]
    for model, dtype in zip(models, ("auto", "bfloat16"), strict=True):
        optimizer = Muon(model, lr=0.02, ns_dtype=dtype)
        for step in range(3):
            optimizer.step(make_closure(model, *make_batch("categorical", 12, 6, 3, seed=step), "categorical"))
    error = relative_error(models[0][2].weight.detach(), models[1][2].weight.detach())
    assert 1e-6 < error < 1e-2  # bfloat16 has 8 bits


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (5, 5)])
def test_the_iteration_acts_on_singular_values_alone(shape):
    """X ← aX + b(XXᵀ)X + c(XXᵀ)²X is s ← as + bs³ + cs⁵ in the singular vectors' basis."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    U, s, Vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = COEFFICIENTS[0] * s + COEFFICIENTS[1] * s**3 + COEFFICIENTS[2] * s**5
    found = orthogonalize(matrix, coefficients=COEFFICIENTS, n_steps=5, eps=1e-7, dtype=DTYPE)
    assert relative_error(found, U @ torch.diag(s) @ Vh) < 1e-12
    assert ((s > 0.6) & (s < 1.3)).all()


def test_a_zero_matrix_stays_zero():
    zero = torch.zeros(3, 4, dtype=DTYPE)
    assert torch.equal(orthogonalize(zero, coefficients=COEFFICIENTS, n_steps=5, eps=1e-7, dtype=DTYPE), zero)


def test_the_learning_rates_factor():
    assert lr_factor((4, 1), "original") == 2.0
    assert lr_factor((1, 4), "original") == 1.0
    assert lr_factor((1, 4), "match_rms_adamw") == pytest.approx(0.4)


class Language(nn.Module):
    """A table, a hidden matrix of its own, a hidden layer and an output layer that may be the table."""

    def __init__(self, tied):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.mixing = nn.Parameter(torch.eye(4))
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(self.table(x) @ self.mixing)))


@pytest.mark.parametrize(
    ("tied", "matrices", "expected"),
    [
        (False, "not_output", {"hidden.weight"}),
        (True, "not_output", {"hidden.weight"}),
        (False, "hidden", {"hidden.weight"}),
        (False, "all", {"mixing", "table.weight", "hidden.weight", "head.weight"}),
    ],
)
def test_embeddings_and_the_output_layer_are_adamws(tied, matrices, expected):
    coverage = Muon(Language(tied), matrices=matrices).coverage()
    assert {name for name, rule in coverage.items() if rule == "Muon"} == expected
    assert {rule for name, rule in coverage.items() if name not in expected} == {"AdamW"}


@pytest.mark.parametrize("matrices", ["hidden", "not_output", "all"])
def test_a_lone_parameter_is_neither_input_nor_output_layer(matrices):
    """The positions of the Transformer are registered before the layers of its modules."""
    model = Transformer(n_tokens=8, n_inputs=8, width=12, n_blocks=1, n_heads=2, n_hidden=16, n_classes=10)
    rules = Muon(model, matrices=matrices).coverage()
    assert (rules["embedding.weight"] == "AdamW") == (matrices == "hidden")
    assert (rules["head.weight"] == "AdamW") == (rules["position"] == "AdamW") == (matrices != "all")
    hidden = [name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    assert {rules[name] for name in hidden} == {"Muon"}


def test_torchs_attention_and_recurrent_layers_have_matrices():
    model = nn.ModuleDict(
        {"mix": nn.MultiheadAttention(4, 2), "recur": nn.LSTM(4, 3), "cell": nn.GRUCell(3, 3), "head": nn.Linear(3, 2)}
    )
    taken = {name for name, rule in Muon(model).coverage().items() if rule == "Muon"}
    assert taken == {
        "mix.in_proj_weight", "mix.out_proj.weight", "recur.weight_ih_l0", "recur.weight_hh_l0", "cell.weight_ih",
        "cell.weight_hh",
    }  # fmt: skip


def test_a_table_that_is_registered_last_is_not_the_output_layer():
    model = nn.ModuleDict({"first": nn.Linear(4, 4), "head": nn.Linear(4, 2), "positions": nn.Embedding(5, 4)})
    taken = {name for name, rule in Muon(model).coverage().items() if rule == "Muon"}
    assert taken == {"first.weight"}


def test_grouped_convolutions_are_adamws():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    coverage = Muon(model).coverage()
    assert (coverage["0.weight"], coverage["1.weight"], coverage["3.weight"]) == ("AdamW", "Muon", "AdamW")


def test_the_memory_layout_does_not_matter():
    plain, channels_last = convolutional(), convolutional().to(memory_format=torch.channels_last)
    for model in (plain, channels_last):
        optimizer = Muon(model, lr=0.02, ns_dtype="parameter")
        for step in range(3):
            optimizer.step(make_closure(model, *images(step), "categorical"))
    for found, expected in zip(channels_last.parameters(), plain.parameters(), strict=True):
        assert relative_error(found.detach(), expected.detach()) < 1e-12


def test_an_overflow_stops_before_the_parameters_change():
    model = make_net(4, 5, 3)
    before = [p.detach().clone() for p in model.parameters()]
    x, y = make_batch("gaussian", 8, 4, 3)

    def closure():
        output = model(x)
        return 1e60 * nn.functional.mse_loss(output, y), output

    with pytest.raises(DivergenceError, match="orthogonalised momentum is not finite"):
        Muon(model, ns_dtype="bfloat16").step(closure)
    for found, expected in zip(model.parameters(), before, strict=True):
        assert torch.equal(found, expected)
