"""Closures that adaptive K-FAC runs again: same random numbers, no trace, whatever the network is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kftune.optim.preconditioning.adaptive.replay import Replay, losses_differ
from tests.optim._adaptive_kfac import batches, build, curvature, position, step
from tests.optim._dense import DTYPE, make_closure

EXACT = 1e-10  # relative, float64; observed at most 1e-15


class Noisy(nn.Module):
    """Batch normalisation with running statistics, and dropout."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.dropout, self.last = nn.Dropout(0.5), nn.Linear(6, 3)
        self.register_buffer("n_calls", torch.zeros(()))
        self.double()

    def forward(self, x):
        self.n_calls = self.n_calls + 1
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x)))))


def test_buffers_and_random_numbers_are_as_after_one_run():
    x, y = batches(1)[0]
    left = {}
    for rescale in ("none", "alpha_and_momentum"):
        torch.manual_seed(0)
        model = Noisy()
        buffers = {name: b for name, b in model.named_buffers() if name != "n_calls"}
        damping = {"adaptive_damping": True, "damping_every": 1} if rescale != "none" else {}
        optimizer = build(model, rescale, **damping)
        for part in zip(x.split((5, 7)), y.split((5, 7)), strict=True):
            optimizer.accumulate(make_closure(model, *part, "categorical"))
        optimizer.step()
        assert all(dict(model.named_buffers())[name] is b for name, b in buffers.items())
        left[rescale] = {name: b.clone() for name, b in model.named_buffers()} | {"random": torch.get_rng_state()}
    assert left["none"]["n_calls"] == 2
    for name, expected in left["none"].items():
        assert torch.equal(left["alpha_and_momentum"][name], expected)


def test_a_closure_runs_again_on_the_same_random_numbers():
    torch.manual_seed(0)
    model = Noisy()
    replay = Replay(model)
    closures = [make_closure(model, *batch, "categorical") for batch in batches(2)]
    losses = []
    for closure in closures:
        random = replay.random_state()
        losses.append(closure()[0].item())
        replay.add(closure, random, torch.tensor(losses[-1], dtype=DTYPE), 12)
    assert replay.loss_change() == 0
    assert [closure()[0].item() for closure in closures] != losses


def test_a_closure_that_raises_when_it_runs_again_leaves_no_copies_behind():
    model = Noisy()
    optimizer = build(model)
    buffers = {name: b for name, b in model.named_buffers() if name != "n_calls"}
    x, y = batches(1)[0]
    runs = []

    def closure():
        runs.append(0)
        output = model(x)
        if len(runs) == 2:
            raise MemoryError
        return nn.functional.cross_entropy(output, y), output

    before = position(model)
    with pytest.raises(MemoryError):
        optimizer.step(closure)
    assert all(dict(model.named_buffers())[name] is b for name, b in buffers.items())
    assert torch.equal(position(model), before)


class SelfAttention(nn.Module):
    """Fused attention, whose backward pass cannot be differentiated."""

    def __init__(self):
        super().__init__()
        self.mix, self.last = nn.Linear(4, 12), nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        q, k, v = self.mix(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)  # each (examples, heads, positions, 2)
        return self.last(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).mean(dim=1).flatten(1))


def test_fused_attention_is_differentiated_unfused():
    torch.manual_seed(0)
    model = SelfAttention()
    x, (_, y) = torch.randn(12, 5, 4, dtype=DTYPE), batches(1)[0]
    with sdpa_kernel(SDPBackend.MATH):
        C, g = curvature(model, (x, y), "categorical", 0.3, 0.0)
    delta = step(build(model, damping=0.3), model, (x, y))
    assert abs((C @ delta + g) @ delta) < EXACT * abs(g @ delta)


def test_closures_of_a_loop_that_all_see_the_last_batch_are_refused():
    """x and y are the loop's own names: by step() they stand for its last batch."""
    model = Noisy()
    optimizer = build(model, "alpha")
    for x, y in batches(3):

        def closure():
            output = model(x)  # noqa: B023  # the mistake that this is about
            return nn.functional.cross_entropy(output, y), output  # noqa: B023

        optimizer.accumulate(closure)
    before = position(model)
    with pytest.raises(RuntimeError, match=r"closure\(xb=xb, yb=yb\)"):
        optimizer.step()
    assert torch.equal(position(model), before)


def test_a_closure_that_draws_its_batch_itself_is_refused():
    model = Noisy()
    drawn = iter(batches(2))

    def closure():
        x, y = next(drawn)
        output = model(x)
        return nn.functional.cross_entropy(output, y), output

    with pytest.raises(RuntimeError, match="a closure gave another loss"):
        build(model).step(closure)


def test_bound_closures_train_with_dropout_and_in_low_precision():
    torch.manual_seed(0)
    model = Noisy().float()
    optimizer = build(model, "alpha_and_momentum", adaptive_damping=True, damping_every=1)
    for _ in range(5):
        for x, y in batches(3):

            def closure(x=x, y=y):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    output = model(x.float())
                return nn.functional.cross_entropy(output.float(), y), output.float()

            optimizer.accumulate(closure)
        optimizer.step()
    assert torch.isfinite(position(model)).all()


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (2.0, 2.0, False),
        (2.0, 2.01, False),
        (2.0, 2.05, True),
        (0.0, 0.0, False),
        (1e-7, 3e-7, False),  # rounding of logits
        (1e-3, 2e-3, True),
        (-1.0, -1.1, True),
        (1.0, float("nan"), False),  # divergence, which is said elsewhere
    ],
)
def test_how_far_losses_may_differ(before, now, expected):
    assert bool(losses_differ(torch.tensor(before), torch.tensor(now))) is expected


class OfItsSlope(nn.Module):
    """u(t), and du/dt inside the closure, as physics-informed losses have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def closure(self, t):
        t = t.clone().requires_grad_()
        u = self.layers(t)
        (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        return (slope - u).square().mean() + (u[0] - 1).square().sum(), u


@pytest.mark.parametrize("damping", [{}, {"adaptive_damping": True, "damping_every": 1}])
@pytest.mark.parametrize("rescale", ["none", "alpha", "alpha_and_momentum"])
def test_losses_that_differentiate_by_their_inputs_can_be_run_again(rescale, damping):
    if rescale == "none" and damping:
        pytest.skip("it runs nothing again")
    model, t = OfItsSlope(), torch.linspace(0, 1, 16, dtype=DTYPE)[:, None]
    optimizer = build(model, rescale, likelihood="gaussian", **damping)
    before = position(model)
    for _ in range(3):
        optimizer.step(lambda: model.closure(t))
    assert torch.isfinite(position(model)).all()
    assert not torch.equal(position(model), before)


def test_what_a_replay_measures_is_the_change_of_the_loss():
    model, t = OfItsSlope(), torch.linspace(0, 1, 16, dtype=DTYPE)[:, None]
    replay = Replay(model)
    replay.add(lambda: model.closure(t), replay.random_state(), model.closure(t)[0], 16)
    before = model.closure(t)[0].item()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
        change = replay.loss_change()
    assert not change.requires_grad
    assert change.item() == model.closure(t)[0].item() - before
