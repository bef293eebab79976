"""Block-tridiagonal K-FAC: which models are chains, and how it refuses all others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.optim import BlockTridiagonalKFAC
from tests.optim._dense import DTYPE


class Model(nn.Module):
    """Three layers 4 → 4 and one 4 → 3, called as the test says."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, n).double() for n in (4, 4, 4, 3))
        self.norm = nn.BatchNorm1d(4).double()
        self.how = how

    def forward(self, x):
        return self.how(self, x)


def chain(m, x):
    return m.d(torch.relu_(m.norm(m.c(torch.tanh(m.b(torch.relu_(m.a(x))))))))


def step_on(model, x=None, optimizer=None):
    """One update; the parameters must stay if it fails."""
    x = torch.randn(8, 4, dtype=DTYPE) if x is None else x
    optimizer = BlockTridiagonalKFAC(model, likelihood="categorical") if optimizer is None else optimizer
    before = [p.detach().clone() for p in model.parameters()]

    def closure():
        output = model(x)
        return nn.functional.cross_entropy(output.reshape(-1, 3), torch.arange(output[..., 0].numel()) % 3), output

    try:
        optimizer.step(closure)
    except RuntimeError:
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
        raise
    return optimizer


def test_chains_with_normalisation_and_frozen_ends():
    model = Model(chain)
    optimizer = step_on(model)
    assert optimizer.state_dict()["extra"]["chain"] == ["a", "b", "c", "d"]
    assert optimizer.coverage()["norm.weight"] == "SGD, outside the KL clip"
    assert optimizer.coverage()["a.bias"] == "block-tridiagonal Kronecker-factored"
    for frozen in ("a", "d"):
        model = Model(chain)
        model.get_submodule(frozen).requires_grad_(False)
        assert step_on(model).state_dict()["extra"]["chain"] == [name for name in "abcd" if name != frozen]


def residual(m, x):
    x = torch.tanh(m.b(torch.tanh(m.a(x))))
    return m.d(x + torch.tanh(m.c(x)))


NO_CHAINS = {
    "skip connection": (residual, "'b'.*reaches the model's output other than through 'c'"),
    "branches": (lambda m, x: m.d(m.b(m.a(x)) + m.c(m.a(x).detach())), "'a'.*more than once"),
    "sum of branches": (lambda m, x: m.d(m.b(x) + m.c(x)), "'b'.*other than through 'c'"),
    "called twice": (lambda m, x: m.d(m.a(m.a(x))), "'a'.*more than once"),
    "unused output": (lambda m, x: (m.a(x), m.d(m.b(x)))[1], "'a'.*does not depend on it"),
    "sequence": (lambda m, x: m.d(m.b(x[:, None].expand(-1, 5, -1))).mean(dim=1), "'b'.*given 40 rows for 8 examples"),
}


@pytest.mark.parametrize(("how", "message"), NO_CHAINS.values(), ids=NO_CHAINS)
def test_what_is_no_chain_is_refused_before_parameters_change(how, message):
    with pytest.raises(RuntimeError, match=message):
        step_on(Model(how))


def test_frozen_and_sleeping_layers_between_trained_ones_are_refused():
    model = Model(chain)
    model.b.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"'b'.*frozen, between trained layers"):
        step_on(model)
    model = Model(chain)
    model.b.eval()
    with pytest.raises(RuntimeError, match=r"'b'.*not seen in the forward pass"):
        step_on(model)


def test_another_order_is_refused_and_no_layer_may_be_left_out():
    model = Model(chain)
    optimizer = step_on(model)
    model.how = lambda m, x: m.d(m.c(m.a(m.b(x))))
    with pytest.raises(RuntimeError, match=r"'b'.*a, b, c, d before, now b, a, c, d"):
        step_on(model, optimizer=optimizer)
    model.how = lambda m, x: m.d(m.c(m.a(x)))
    with pytest.raises(RuntimeError, match=r"'b'.*a, b, c, d before, now a, c, d"):
        step_on(model, optimizer=optimizer)
    model = Model(chain)
    rare = BlockTridiagonalKFAC(model, likelihood="categorical", statistics_every=5, inverses_every=5, warmup_updates=0)
    step_on(model, optimizer=rare)
    model.how = lambda m, x: m.d(m.c(m.a(x)))
    with pytest.raises(RuntimeError, match=r"'b'.*no gradient in this update"):
        step_on(model, optimizer=rare)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Conv2d(2, 3, 3), "'1' does not belong to one: it is Conv2d"),
        (nn.Embedding(3, 4), "'1' does not belong to one: it is Embedding"),
        (nn.GRU(3, 4), "'1' does not belong to one: it is GRU"),
    ],
)
def test_other_weights_are_refused_by_the_constructor(module, message):
    with pytest.raises(ValueError, match=message):
        BlockTridiagonalKFAC(nn.Sequential(nn.Linear(4, 4), module), likelihood="categorical")


def test_shared_weights_are_refused_by_the_constructor():
    model = Model(chain)
    model.b.weight = model.a.weight
    with pytest.raises(ValueError, match=r"'a'.*shared"):
        BlockTridiagonalKFAC(model, likelihood="categorical")
