"""Whether training leaks: ``python -m tests.optim.leaks NAME [SECONDS]`` trains with one optimizer and prints a row.

Resident memory is read 20 times; nothing is collected by hand meanwhile. See dashboards/leaks.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import psutil
import torch

from kftune.optim import OPTIMIZERS
from kftune.problems import PROBLEMS

_BATCH = 32
_READINGS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=OPTIMIZERS.names())
    parser.add_argument("seconds", nargs="?", type=float, default=600.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    entry = OPTIMIZERS.get(arguments.name)
    name = "digits_mlp" if entry.chains_only else "digits_resnet"
    problem = PROBLEMS.get(name).load(device=torch.device("cpu"), dtype=torch.float32, data_dir=Path())
    model = problem.make_model().train()
    optimizer = entry.build(model, likelihood=problem.likelihood, params={**entry.example, "lr": 1e-3})

    def closure() -> tuple[torch.Tensor, torch.Tensor]:
        output = model(inputs)
        return problem.loss(output, targets), output

    process, start, n_updates = psutil.Process(), time.perf_counter(), 0
    resident: list[float] = []
    while (elapsed := time.perf_counter() - start) < arguments.seconds:
        chosen = torch.randint(len(problem.train), (_BATCH,))
        inputs, targets = problem.train.inputs[chosen], problem.train.targets[chosen]
        optimizer.step(closure)
        n_updates += 1
        if elapsed >= (len(resident) + 1) * arguments.seconds / (_READINGS + 1):
            resident.append(process.memory_info().rss / 2**20)
    hooks = _n_hooks(model)
    del optimizer
    half = len(resident) // 2
    cells = (n_updates, *(f"{m:.1f}" for m in (resident[0], resident[half], resident[-1])), hooks, _n_hooks(model))
    print(f"| {arguments.name} | {name} |", " | ".join(map(str, cells)), "|")


def _n_hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())


if __name__ == "__main__":
    main()
