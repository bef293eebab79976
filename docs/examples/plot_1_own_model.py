"""
A study of your own model
=========================

Three optimizers are tuned on a small network, from Python. The problem is a function in a module beside the script,
because every run is a process that imports it anew:

.. literalinclude:: ../examples/modules/waves.py
   :start-at: def load

A budget of updates in place of seconds makes this page the same on every machine; for a comparison that counts what a
step costs, write ``budget={"seconds": 1}``.
"""

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import waves

import kftune

study = kftune.Study(
    name="waves",
    problems=[waves.load],
    optimizers=["sgd", "adamw", "kfac"],
    budget={"updates": 60},
    trials=8,
    repeats=1,
    startup_trials=8,
    sampler="random",
    devices="cpu",
    threads=1,
    storage=f"{tempfile.mkdtemp()}/waves.db",
)
results = study.run(progress=False)

# %%
# The best configuration of every optimizer:

for row in results.best().itertuples():
    params = ", ".join(f"{name} {value:.3g}" for name, value in row.params.items() if isinstance(value, float))
    print(f"{row.optimizer:6} {row.value:.4f}  {params}")

# %%
# All trials, best first. A line that stays low far to the right belongs to an optimizer that works with many settings.

trials = results.trials()
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, of_optimizer in trials.groupby("optimizer", sort=False):
    values = np.sort(of_optimizer["value"].to_numpy())
    axes.semilogy(np.arange(1, len(values) + 1), values, marker="o", label=name)
axes.set_xlabel("trial, sorted")
axes.set_ylabel("test loss")
axes.legend()
plt.show()
