"""SGD and AdamW are torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kftune.optim import SGD, AdamW
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
