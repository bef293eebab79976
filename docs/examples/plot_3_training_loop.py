"""
K-FAC in a training loop of your own
====================================

The optimizers are ordinary torch optimizers. The one difference: ``step`` takes a closure that returns the loss *and*
the model's output, and does not call ``backward``, because curvature needs the output's distribution.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from kftune.optim import KFAC

digits = load_digits()
inputs = torch.as_tensor(digits.data, dtype=torch.float32) / 16
targets = torch.as_tensor(digits.target)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
optimizer = KFAC(
    model, lr=0.2, damping=1e-2, kl_clip=1e-2, statistics_every=1, inverses_every=5, likelihood="categorical"
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=60)

losses, scales = [], []
for _ in range(60):
    batch = torch.randint(len(inputs), (256,))

    def closure():
        output = model(inputs[batch])
        return F.cross_entropy(output, targets[batch]), output

    losses.append(float(optimizer.step(closure)))
    scales.append(optimizer.readings()["kl_clip_scale"])
    scheduler.step()

# %%
# What was done to every parameter:

for name, treatment in optimizer.coverage().items():
    print(f"{name:10} {treatment}")

# %%
# The loss, and how much the KL clip shortened the updates: the steps are short while the network changes fast.

figure, (above, below) = plt.subplots(2, figsize=(6, 4.5), sharex=True, layout="constrained")
above.semilogy(losses)
above.set_ylabel("loss of the batch")
below.plot(scales)
below.set_ylabel("scale by the KL clip")
below.set_xlabel("update")
plt.show()

# %%
# Micro-batches add up to the same update: :meth:`~kftune.optim.ModelOptimizer.accumulate` adds one, ``step()`` then
# updates as if they had been one batch.

for part in torch.arange(512).split(128):

    def closure(part=part):
        output = model(inputs[part])
        return F.cross_entropy(output, targets[part]), output

    optimizer.accumulate(closure)
optimizer.step()
