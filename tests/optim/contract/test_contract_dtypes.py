"""What every registered optimizer makes of parameters in half precision, of complex ones, and of empty ones."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from kftune.optim import TorchOptimizer
from tests.optim._contract import build, every, network, parameters
from tests.optim._dense import make_batch, make_closure
from tests.optim._models import task
from tests.optim.contract.test_contract_models import skip_unless_it_takes_any_layers

halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def batch(dtype, n=24, seed=0):
    x, y = make_batch("categorical", n, 6, 3, seed=seed)
    return x.to(dtype), y


def kept_tensors(state):
    """Everything with two dimensions that is kept beside what has a parameter's shape and part."""
    layers = [tensor for own in state["extra"].get("layers", {}).values() for tensor in own.values()]
    sides = [t for own in state["state"].values() for key, t in own.items() if key.startswith(("left", "right"))]
    kept = (value for value in layers + sides if isinstance(value, torch.Tensor))
    return [tensor for tensor in kept if tensor.is_floating_point()]


@pytest.mark.product
@every
@halves
@pytest.mark.parametrize("n", [4, 40])
def test_half_precision_trains_with_curvature_in_single(entry, dtype, n):
    """As in float64 from the same rounded parameters, to the rounding of 10 updates."""
    model, exact = network().to(dtype), network().to(dtype).double()
    optimizer, reference = build(entry, model, **entry.deterministic), build(entry, exact, **entry.deterministic)
    (x, y), before = batch(dtype, n), parameters(exact)
    for _ in range(10):
        optimizer.step(make_closure(model, x, y, "categorical"))
        reference.step(make_closure(exact, x.double(), y, "categorical"))
    # Undamped, rounding decides; and as torch's AdamW has them, averaged squares are in the parameters' own precision.
    if entry.name != "kfac_thesis" and not (entry.cls.averages_squares and dtype == torch.float16):
        moved, expected = (
            torch.cat([(a.double() - b).flatten() for a, b in zip(parameters(own), before, strict=True)])
            for own in (model, exact)
        )
        assert (moved - expected).norm() < 0.5 * expected.norm()
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in model.parameters())
    assert all(tensor.dtype in (torch.float32, torch.float64) for tensor in kept_tensors(optimizer.state_dict()))


@pytest.mark.product
@every
@halves
@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_real_layers_train_in_half_precision(entry, dtype, name):
    model, x, y = task(name, dtype=dtype)
    skip_unless_it_takes_any_layers(entry, model)
    optimizer = build(entry, model)
    for _ in range(6):
        optimizer.step(make_closure(model, x, y, "categorical"))
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in model.parameters())


@every
def test_half_precision_resumes_bit_for_bit(entry):
    model, other = network().bfloat16(), network(seed=1).bfloat16()
    optimizer, resumed = build(entry, model), build(entry, other, seed=7)

    def run(own, net, seeds):
        return [own.step(make_closure(net, *batch(torch.bfloat16, seed=s), "categorical")).item() for s in seeds]

    run(optimizer, model, range(7))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert run(optimizer, model, range(20, 28)) == run(resumed, other, range(20, 28))
    assert all(map(torch.equal, parameters(model), parameters(other)))


class Odd(nn.Module):
    """A net with a parameter of no entries, and one of no dimension."""

    def __init__(self, *, dtype=torch.float64):
        super().__init__()
        self.net = network()
        self.nothing = nn.Parameter(torch.zeros(0, dtype=dtype))
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x):
        return self.scale.real * self.net(x) + self.nothing.real.sum()


@every
def test_empty_parameters_and_numbers_are_no_hindrance(entry):
    model = Odd()
    optimizer = build(entry, model)
    before = parameters(model)
    x, y = make_batch("categorical", 24, 6, 3)
    for _ in range(12):
        optimizer.step(make_closure(model, x, y, "categorical"))
    moved = {name for (name, p), old in zip(model.named_parameters(), before, strict=True) if not torch.equal(p, old)}
    assert moved == {"scale", "net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    resumed = build(entry, Odd())
    resumed.load_state_dict(optimizer.state_dict())


@every
def test_complex_parameters_are_refused_by_name(entry):
    with pytest.raises(ValueError, match=r"parameter 'nothing' is of torch.complex128: \w+ takes real ones only"):
        build(entry, Odd(dtype=torch.complex128))
    optimizer = build(entry, network())
    n = len(optimizer.param_groups)
    with pytest.raises(ValueError, match=r"'late' is of torch.complex64|one parameter group"):
        optimizer.add_param_group({"params": [("late", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))]})
    assert len(optimizer.param_groups) == n


def test_torchs_own_may_take_complex_parameters():
    model = Odd(dtype=torch.complex128)
    x, y = make_batch("categorical", 24, 6, 3)
    optimizer = TorchOptimizer(model, torch.optim.Adam(model.parameters(), lr=0.1))
    before = model.scale.detach().clone()
    optimizer.step(make_closure(model, x, y, "categorical"))
    assert not torch.equal(model.scale, before)
