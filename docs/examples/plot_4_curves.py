"""
Updates or seconds: what is a step worth?
=========================================

K-FAC's updates go further than SGD's and cost more. The same curves against updates and against seconds of training
show both sides; a fair comparison by seconds is what a budget in seconds makes.
"""

import itertools
import time

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from kftune.optim import KFAC, SGD

inputs = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16


def train(make_optimizer, n_updates):
    """Losses on all examples, and the seconds spent in updates until then, of an autoencoder."""
    torch.manual_seed(0)
    sizes = (64, 128, 32, 8, 32, 128, 64)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())]
    model = nn.Sequential(*layers[:-1])
    optimizer = make_optimizer(model)
    losses, seconds, spent = [], [], 0.0
    for update in range(n_updates):
        batch = torch.randint(len(inputs), (256,))

        def closure():
            output = model(inputs[batch])
            return F.mse_loss(output, inputs[batch]), output

        started = time.perf_counter()
        optimizer.step(closure)
        spent += time.perf_counter() - started
        if update % 10 == 9:
            with torch.no_grad():
                losses.append(float(F.mse_loss(model(inputs), inputs)))
            seconds.append(spent)
    return losses, seconds


curves = {
    "SGD": train(lambda model: SGD(model, lr=0.3, momentum=0.95), 800),
    "K-FAC": train(
        lambda model: KFAC(
            model, lr=0.3, damping=3e-3, kl_clip=1e-2, statistics_every=5, inverses_every=20, likelihood="gaussian"
        ),
        300,
    ),
}

# %%
# Left: an update of K-FAC is worth many of SGD's. Right: what remains of that when its cost counts.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.5), sharey=True, layout="constrained")
for name, (losses, seconds) in curves.items():
    axes[0].semilogy([10 * (i + 1) for i in range(len(losses))], losses, label=name)
    axes[1].semilogy(seconds, losses, label=name)
axes[0].set(xlabel="updates", ylabel="mean squared error")
axes[1].set(xlabel="seconds in updates")
axes[0].legend()
plt.show()
