"""
Results as data frames
======================

What a study leaves in its database comes back as pandas frames: one row per trial, per run, or per point of a curve.
Nothing here needs torch; a laptop can read a cluster's database.
"""

import tempfile

import matplotlib.pyplot as plt

import kftune

study = kftune.Study(
    name="frames",
    problems=["digits_mlp"],
    optimizers=["sgd", {"name": "kfac", "fixed": {"batch_size": 256}}],
    budget={"updates": 40},
    trials=4,
    repeats=2,
    startup_trials=4,
    sampler="random",
    devices="cpu",
    threads=1,
    storage=f"{tempfile.mkdtemp()}/frames.db",
)
results = study.run(progress=False)

# %%
# One row per run. Where the seconds went stands in columns of its own; the parts add up to the training clock.

runs = results.runs()
print(runs.columns.tolist())
print(runs.groupby("optimizer")[["train_seconds", "updates"]].mean())

# %%
# One row per point of every curve: the median over all runs of an optimizer, and the range in which half of them lie.

curves = results.curves()
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, of_optimizer in curves.groupby("optimizer", sort=False):
    quartiles = of_optimizer.groupby("update")["test_loss"].quantile([0.25, 0.5, 0.75]).unstack()
    (line,) = axes.semilogy(quartiles.index, quartiles[0.5], label=name)
    axes.fill_between(quartiles.index, quartiles[0.25], quartiles[0.75], color=line.get_color(), alpha=0.2)
axes.set_xlabel("update")
axes.set_ylabel("test loss, all trials")
axes.legend()
plt.show()
