"""SGD and AdamW are torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.optim import KFAC, SGD, AdamW
from tests.optim._dense import make_batch, make_closure, make_net

CASES = {
    "sgd": (
        lambda model: SGD(model, lr=0.2, momentum=0.8, weight_decay=0.01),
        lambda ps: torch.optim.SGD(ps, lr=0.2, momentum=0.8, weight_decay=0.01, nesterov=True),
    ),
    "heavy ball": (
        lambda model: SGD(model, lr=0.2, momentum=0.8, nesterov=False),
        lambda ps: torch.optim.SGD(ps, lr=0.2, momentum=0.8),
    ),
    "no momentum": (
        lambda model: SGD(model, lr=0.2, momentum=0.0),
        lambda ps: torch.optim.SGD(ps, lr=0.2),
    ),
    "adamw": (
        lambda model: AdamW(model, lr=0.02, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.1),
        lambda ps: torch.optim.AdamW(ps, lr=0.02, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_torchs(case):
    ours, theirs = make_net(4, 6, 3), make_net(4, 6, 3)
    make_ours, make_theirs = CASES[case]
    optimizer, reference = make_ours(ours), make_theirs(theirs.parameters())
    for step in range(6):
        x, y = make_batch("gaussian", 8, 4, 3, seed=step)
        optimizer.step(make_closure(ours, x, y, "gaussian"))
        reference.zero_grad()
        nn.functional.mse_loss(theirs(x), y).backward()
        reference.step()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_weight_decay_leaves_the_gradient_as_it_is():
    model = make_net(4, 3)
    x, y = make_batch("gaussian", 8, 4, 3)
    nn.functional.mse_loss(model(x), y).backward()
    expected = model[0].weight.grad.clone()
    SGD(model, weight_decay=10.0).step(make_closure(model, x, y, "gaussian"))
    torch.testing.assert_close(model[0].weight.grad, expected)


class Bag(nn.Module):
    """The mean of words' vectors, whose gradient may be sparse, for a linear layer."""

    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last = nn.Embedding(11, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, words):
        return self.last(self.table(words).mean(dim=1))


def words(seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(11, (8, 2), generator=g), torch.randint(3, (8,), generator=g)


def train_on_words(optimizer, model, *, split=8):
    for seed in range(4):
        x, y = words(seed)
        for part in zip(x.split(split), y.split(split), strict=True):
            optimizer.accumulate(make_closure(model, *part, "categorical"))
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sparse_gradients_are_torchs_too(momentum):
    ours, theirs = Bag(sparse=True), Bag(sparse=True)
    train_on_words(SGD(ours, lr=0.2, momentum=momentum, nesterov=False), ours)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.2, momentum=momentum)
    for seed in range(4):
        x, y = words(seed)
        reference.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        reference.step()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("split", [8, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda model: SGD(model, momentum=0.9, weight_decay=0.1),
        lambda model: AdamW(model, lr=0.01),
        lambda model: KFAC(model, likelihood="categorical", fisher="empirical"),
    ],
)
def test_sparse_gradients_train_like_dense_ones(make, split):
    models = [Bag(sparse=False), Bag(sparse=True)]
    for model in models:
        train_on_words(make(model), model, split=split)
    for found, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
