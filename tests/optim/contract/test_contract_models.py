"""What every registered optimizer must do with real layers, and with data that make curvature degenerate."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from kftune.errors import CurvatureError, DivergenceError
from tests.optim._contract import build, every, parameters
from tests.optim._dense import make_closure, make_net
from tests.optim._models import MODELS, task

models = pytest.mark.parametrize("name", MODELS)


def skip_unless_it_takes_any_layers(entry, model):
    """An optimizer for chains of linear layers only must refuse anything else, in the constructor or at once."""
    if entry.chains_only:
        with pytest.raises((ValueError, RuntimeError), match="chain"):
            build(entry, model)
        pytest.skip(f"{entry.name} is for chains of linear layers; it refused")


@pytest.mark.product
@every
@models
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_real_layers_are_trained(entry, name, dtype):
    model, x, y = task(name, dtype=dtype)
    skip_unless_it_takes_any_layers(entry, model)
    optimizer = build(entry, model)
    closure = make_closure(model, x, y, "categorical")
    before = parameters(model)
    losses = [optimizer.step(closure).item() for _ in range(60)]
    assert min(losses[-5:]) < 0.7 * losses[0]
    assert not any(torch.equal(a, b) for a, b in zip(parameters(model), before, strict=True))
    assert list(optimizer.coverage()) == [name for name, _ in model.named_parameters()]


@every
@models
def test_real_layers_resume_bit_for_bit(entry, name):
    model, x, y = task(name)
    skip_unless_it_takes_any_layers(entry, model)
    optimizer = build(entry, model)
    closure = make_closure(model, x, y, "categorical")
    for _ in range(7):
        optimizer.step(closure)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, _, _ = task(name, seed=1)
    other.load_state_dict(saved["model"])
    resumed = build(entry, other, seed=5)
    resumed.load_state_dict(saved["optimizer"])
    other_closure = make_closure(other, x, y, "categorical")
    for _ in range(8):
        assert optimizer.step(closure).item() == resumed.step(other_closure).item()
    for found, expected in zip(parameters(other), parameters(model), strict=True):
        assert torch.equal(found, expected)


@every
@models
def test_frozen_layers_stay(entry, name):
    model, x, y = task(name)
    skip_unless_it_takes_any_layers(entry, model)
    frozen = {key for key, _ in model.named_parameters() if key.startswith(("stem", "blocks.0", "embedding", "first"))}
    for key, p in model.named_parameters():
        p.requires_grad_(key not in frozen)
    optimizer = build(entry, model)
    before = parameters(model)
    for _ in range(3):
        optimizer.step(make_closure(model, x, y, "categorical"))
    changed = zip(dict(model.named_parameters()), parameters(model), before, strict=True)
    assert {key for key, a, b in changed if torch.equal(a, b)} == frozen
    assert {key for key, rule in optimizer.coverage().items() if rule == "frozen"} == frozen


def relu_net(dtype):
    """The second layer's units are dead but one, the first layer's first four inputs are zero in every example."""
    model = make_net(8, 6, 6, 3, activation=nn.ReLU)
    with torch.no_grad():
        model[2].bias[1:] = -1e3
    return model.to(dtype)


DEGENERATE = {
    "dead inputs and units": (24, 1.0),
    "one example": (1, 1.0),
    "tiny": (24, 1e-18),
    "huge": (24, 1e25),
    "nothing": (24, 0.0),
}


@pytest.mark.product
@every
@pytest.mark.parametrize(("n", "scale"), DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_data_never_put_a_nan_into_the_weights(entry, n, scale, dtype):
    model = relu_net(dtype)
    optimizer = build(entry, model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        x = scale * torch.randn(n, 8, generator=generator, dtype=torch.float64)
        x[:, :4] = 0
        y = torch.randint(3, (n,), generator=generator)
        before = parameters(model)
        try:
            optimizer.step(make_closure(model, x.to(dtype), y, "categorical"))
        except (DivergenceError, CurvatureError) as error:
            refusal = str(error)
        else:
            refusal = ""
        assert all(torch.isfinite(p).all() for p in model.parameters())
        if refusal:
            assert all(torch.equal(a, b) for a, b in zip(parameters(model), before, strict=True))
            return
