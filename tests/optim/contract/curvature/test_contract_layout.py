"""Where every method with labels takes the classes of a categorical output to be, and how it knows."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from kftune.optim import KFAC, OPTIMIZERS
from tests.optim._contract import build, parameters
from tests.optim._dense import DTYPE

N_CLASSES = 3
FOOF = {"variant": "kfac_norm"}  # with labels
LABELLED = [
    pytest.param(
        entry, {name: kind} | ({"variant": "kfac_norm"} if entry.name == "foof" else {}), id=f"{entry.name}-{kind}"
    )
    for entry in OPTIMIZERS
    for name in ("fisher", "labels")
    if name in inspect.signature(entry.cls).parameters
    for kind in ("mc", "exact", "empirical", "permuted")
]
labelled = pytest.mark.parametrize(("entry", "own"), LABELLED)


class Positions(nn.Module):
    """(N, 6) → logits of some positions, with the classes first or last."""

    def __init__(self, *grid, classes_first):
        super().__init__()
        torch.manual_seed(0)
        n = torch.Size(grid).numel()
        self.first, self.last = nn.Linear(6, 5, dtype=DTYPE), nn.Linear(5, n * N_CLASSES, dtype=DTYPE)
        self.grid, self.classes_first = grid, classes_first

    def forward(self, x):
        output = self.last(torch.tanh(self.first(x))).view(len(x), *self.grid, N_CLASSES)
        return output.movedim(-1, 1) if self.classes_first else output


def batch(*grid, step=0):
    g = torch.Generator().manual_seed(step)
    return torch.randn(12, 6, generator=g, dtype=DTYPE), torch.randint(N_CLASSES, (12, *grid), generator=g)


def torchs(model, x, y):
    """As torch has it: cross_entropy of (N, C, …)."""
    output = model(x)
    return nn.functional.cross_entropy(output, y), output


def ours(model, x, y):
    output = model(x)
    return nn.functional.cross_entropy(output.movedim(-1, 1) if output.dim() > 2 else output, y), output


@labelled
@pytest.mark.parametrize("grid", [(4,), (3,), (1,), (2, 3)], ids=str)
def test_torchs_layout_is_refused_by_name_and_nothing_changes(entry, own, grid):
    """Also where positions are as many as classes."""
    model = Positions(*grid, classes_first=True)
    optimizer = build(entry, model, **own)
    before = parameters(model)
    x, y = batch(*grid)
    with pytest.raises(
        RuntimeError, match=r"last dimension for classes.* them in dimension 1 .*output\.movedim\(1, -1\)"
    ):
        optimizer.step(lambda: torchs(model, x, y))
    assert all(torch.equal(a, b) for a, b in zip(parameters(model), before, strict=True))


@labelled
def test_what_the_error_says_is_what_it_takes(entry, own):
    """The same updates as with the classes last all along."""
    found = []
    for classes_first in (True, False):
        model = Positions(4, classes_first=classes_first)
        optimizer = build(entry, model, **own)
        for step in range(4):
            x, y = batch(4, step=step)

            def closure(model=model, x=x, y=y, classes_first=classes_first):
                loss, output = (torchs if classes_first else ours)(model, x, y)
                return loss, output.movedim(1, -1) if classes_first else output

            optimizer.step(closure)
        found.append(parameters(model))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"ignore_index": 0}, {"weight": (0.2, 1.0, 3.0)}],
    ids=lambda options: next(iter(options), "plain"),
)
def test_classes_in_the_last_dimension_pass_with_every_loss_of_torch(options, dtype):
    model = Positions(5, classes_first=False).to(torch.float32)
    options = {key: torch.tensor(value, dtype=dtype) if key == "weight" else value for key, value in options.items()}
    optimizer = KFAC(model, likelihood="categorical")
    x, y = batch(5)

    def closure():
        output = model(x.float()).to(dtype)
        return nn.functional.cross_entropy(output.movedim(-1, 1), y, **options), output

    optimizer.step(closure)


def test_a_shape_is_looked_at_once_and_a_new_one_too():
    model = Positions(4, classes_first=False)
    optimizer = KFAC(model, likelihood="categorical", statistics_every=1, inverses_every=1)
    x, y = batch(4)
    seen = []

    def closure():
        seen.append(ours(model, x, y))
        return seen[-1]

    for _ in range(2):
        optimizer.step(closure)
    assert [bool(output._backward_hooks) for _, output in seen] == [True, False]
    model.grid, model.classes_first = (2, 2), True
    with pytest.raises(RuntimeError, match=r"dimension 1 of \(N, 3, 2, 2\)"):
        optimizer.step(lambda: torchs(model, x, y.view(12, 2, 2)))


def test_a_loss_that_is_no_cross_entropy_is_not_judged():
    """Nothing adds up to zero."""
    model = Positions(4, classes_first=True)
    optimizer = KFAC(model, likelihood="categorical")
    x, _ = batch(4)

    def closure():
        output = model(x)
        return output.square().mean(), output

    optimizer.step(closure)
