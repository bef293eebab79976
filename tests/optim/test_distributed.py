"""Two processes under DistributedDataParallel do what one does on the union of their batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kftune.optim import OPTIMIZERS
from tests.optim._contract import build, every, network, parameters
from tests.optim._dense import make_batch, make_closure

PROCESS = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from kftune.optim import OPTIMIZERS
from tests.optim._contract import build, network
from tests.optim._dense import make_batch, make_closure

rank, rendezvous, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
found = {}
for name in sys.argv[4:]:
    entry = OPTIMIZERS.get(name)
    model = DistributedDataParallel(network())
    try:
        optimizer = build(entry, model, **entry.deterministic)
    except ValueError as error:
        found[name] = str(error)
        continue
    for step in range(4):
        x, y = make_batch("categorical", 24, 6, 3, seed=step)
        own = slice(12 * rank, 12 * rank + 12)
        optimizer.step(make_closure(model, x[own], y[own], "categorical"))
    found[name] = [p.detach() for p in model.module.parameters()]
if rank == 0:
    torch.save(found, out)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    directory: Path = tmp_path_factory.mktemp("ddp")
    names = [entry.name for entry in OPTIMIZERS]
    arguments = [str(directory / "rendezvous"), str(directory / "found.pt"), *names]
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), *arguments]) for rank in (0, 1)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    return torch.load(directory / "found.pt", weights_only=True)


@every
def test_two_processes_equal_one(entry, two_processes):
    found = two_processes[entry.name]
    assert isinstance(found, str) != entry.distributed
    if not entry.distributed:
        assert found == f"{entry.cls.__name__} does not average its curvature over processes: give it one process"
        return
    model = network()
    optimizer = build(entry, model, **entry.deterministic)
    for step in range(4):
        optimizer.step(make_closure(model, *make_batch("categorical", 24, 6, 3, seed=step), "categorical"))
    for ours, expected in zip(found, parameters(model), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
