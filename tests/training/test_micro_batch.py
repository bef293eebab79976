"""Micro-batches: found under a limited memory, and the update they give."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from kftune.optim.methods.kfac import KFAC
from kftune.results import Outcome, RunSpec
from kftune.study.executors import Finished, LocalExecutor
from kftune.study.executors.ledger import Ledger
from kftune.training.data.batches import BatchSizes
from kftune.training.loop.memory import limited_memory
from kftune.training.loop.micro_batch import find_micro_batch, probe
from kftune.training.loop.trainer import Training, train
from tests.study.test_executor import until_the_end

# Small layers, but 256 KB of activations for each example, several times over.
WIDE = '''
from dataclasses import replace
import torch
from kftune.problems import PROBLEMS, Split

class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(64, 32), torch.nn.Linear(32, 10)

    def forward(self, inputs):
        hidden = self.first(inputs)
        return self.last((hidden[:, None] + torch.zeros(2048, 1)).mul(1.1).relu().mean(dim=1))

def load(*, device, dtype, data_dir):
    """Digits."""
    digits = PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)
    test = Split(digits.test.inputs[:32], digits.test.targets[:32])
    return replace(digits, make_model=Wide, test=test)
'''


def test_the_search_ends_within_an_eighth_below_the_limit() -> None:
    for wanted in (1, 7, 64, 1000, 4096):
        for limit in (0, 1, 2, 3, 5, 8, 60, 100, 999, 5000):
            tried: list[int] = []

            def fits(micro: int, limit: int = limit, tried: list[int] = tried) -> bool:
                tried.append(micro)
                return micro <= limit

            found = find_micro_batch(wanted, fits)
            if limit == 0:
                assert found is None
                continue
            largest = min(wanted, limit)
            assert found is not None
            assert largest - max(1, largest // 8) <= found <= largest
            assert len(set(tried)) == len(tried) <= wanted.bit_length() + 4
            if limit >= wanted:
                assert tried == [wanted]


@pytest.mark.parametrize(
    ("batch_size", "effective", "limit", "expected"),
    [(100, None, 30, [30, 30, 30, 10]), (20, 60, 30, [20] * 3), (None, 64, 64, [64]), (10, 30, 1, [1] * 30)],
)
def test_a_limit_cuts_batches(batch_size: int | None, effective: int | None, limit: int, expected: list[int]) -> None:
    sizes = BatchSizes(batch_size=batch_size, effective_batch_size=effective, micro_limit=limit, n_train=1000)
    assert sizes.of_update(0) == expected
    assert sizes.micro == expected[0]


def test_a_limit_cuts_growing_batches_too() -> None:
    sizes = BatchSizes(batch_size=100, full_batch_at=3, micro_limit=250, n_train=1000)
    assert [sizes.of_update(k) for k in (0, 2)] == [[100], [250] * 4]
    with pytest.raises(ValueError, match="micro_limit must be at least 1, got 0"):
        BatchSizes(batch_size=100, micro_limit=0, n_train=1000)


def spec(directory: Path, **changes: object) -> RunSpec:
    (directory / "wide_problem.py").write_text(WIDE)
    settings: dict[str, object] = {
        "problem": "wide_problem:load",
        "optimizer": "kfac",
        "params": {"lr": 0.1, "damping": 0.1, "batch_size": 300, "fisher": "empirical"},
        "seed": 1,
        "budget_updates": 3,
        "n_evaluations": 1,
        "train_examples": 32,
        "module_dir": str(directory),
    }
    return RunSpec(**(settings | changes))  # type: ignore[arg-type]  # a test's shorthand


# Every run in a process of its own, as the executor does it, but without importing torch each time.
SEARCH = """
import json, os, pickle, sys
from dataclasses import replace
import psutil, torch
from kftune.training.loop.micro_batch import find_micro_batch, is_too_large, probe
from kftune.training.loop.trainer import train

def result_of(spec):
    read, write = os.pipe()
    if os.fork() == 0:
        with os.fdopen(write, "wb") as file:
            pickle.dump(train(spec), file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        result = pickle.load(file)
    os.wait()
    return result

torch.set_num_threads(1)
run, wanted = pickle.load(sys.stdin.buffer), 300
train(replace(run, params={"batch_size": 2}))  # imports what torch imports when it is needed
unlimited = result_of(run)
os.environ["KFTUNE_MEMORY_LIMIT"] = str(psutil.Process().memory_info().data + 150 * 2**20)
whole = result_of(run)
micro = find_micro_batch(wanted, lambda micro: not is_too_large(result_of(probe(run, wanted=wanted, micro=micro))))
found = {"unlimited": unlimited, "whole": whole}
if micro is not None:
    found["cut"] = result_of(replace(run, micro_batch=micro))
    found["twice"] = result_of(replace(run, micro_batch=2 * micro))
sys.stdout.buffer.write(pickle.dumps((micro, found)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs RLIMIT_DATA as Linux has it")
def test_a_size_is_found_that_then_trains(tmp_path: Path) -> None:
    # Freed memory goes back to the system at once, where malloc would keep now more of it and now less.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", SEARCH]
    given = pickle.dumps(spec(tmp_path))
    answer = subprocess.run(command, input=given, stdout=subprocess.PIPE, env=environment, check=True)
    micro, found = pickle.loads(answer.stdout)
    assert 120 <= micro <= 180  # three times 256 KB of each example in nine tenths of 150 MB
    assert {name: result.outcome for name, result in found.items()} == {
        "unlimited": Outcome.COMPLETED,
        "whole": Outcome.OUT_OF_MEMORY,
        "cut": Outcome.COMPLETED,
        "twice": Outcome.OUT_OF_MEMORY,
    }
    assert found["cut"].examples == 3 * 300
    # The updates are those of the whole batch.
    losses = [[point.test_loss for point in found[name].curve] for name in ("cut", "unlimited")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


KILLED = '''
import os, signal
from dataclasses import replace
import torch
from kftune.problems import PROBLEMS

class Fragile(torch.nn.Linear):
    def forward(self, inputs):
        if len(inputs) > 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(inputs)

def load(*, device, dtype, data_dir):
    """Digits."""
    digits = PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)
    return replace(digits, make_model=lambda: Fragile(64, 10))
'''


def test_a_size_is_found_where_the_kernel_kills_what_takes_too_much(tmp_path: Path) -> None:
    run = spec(tmp_path, problem="fragile_problem:load", optimizer="sgd", params={"batch_size": 4})
    (tmp_path / "fragile_problem.py").write_text(KILLED)
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        assert executor.find_micro_batch(0, run, wanted=4) == 3
        assert executor.idle_slots() == [0]
        executor.submit(0, replace(run, micro_batch=3), limit_seconds=None)
        ended, _ = until_the_end(executor)
        assert isinstance(ended, Finished)
        assert ended.result.outcome is Outcome.COMPLETED, ended.result.message


def test_a_probe_is_two_whole_updates(tmp_path: Path) -> None:
    made = probe(spec(tmp_path, budget_updates=None, budget_seconds=60.0), wanted=300, micro=100)
    result = train(made)
    assert result.outcome is Outcome.COMPLETED, result.message
    assert (result.updates, result.examples) == (2, 600)
    training = Training(made, lambda point: None)
    training.set_up()
    assert training.batch_sizes.of_update(0) == [100] * 3


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs RLIMIT_DATA as Linux has it")
def test_a_limit_holds_inside_its_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    available = psutil.virtual_memory().available
    cpu = torch.device("cpu")
    with limited_memory(cpu, share=0.5), pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(int(0.9 * available), dtype=torch.uint8)
    with limited_memory(cpu), pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.empty(2 * available, dtype=torch.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    monkeypatch.setenv("KFTUNE_MEMORY_LIMIT", "4G")
    result = train(RunSpec(problem="digits_mlp", optimizer="sgd", params={"batch_size": 8}, seed=1, budget_updates=1))
    assert result.outcome is Outcome.CRASHED
    assert "KFTUNE_MEMORY_LIMIT must be a whole number of bytes, got '4G'" in result.message


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_micro_batches_of_64_give_kfacs_update_of_4096(fisher: str, dtype: torch.dtype, rtol: float) -> None:
    """Relative to the largest change of each parameter; in float32 the sums over examples are rounded differently."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 20, generator=generator, dtype=dtype)
    y = torch.randint(5, (4096,), generator=generator)
    changes = []
    for micro in (4096, 64):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)).to(dtype)
        start = [p.detach().clone() for p in model.parameters()]
        optimizer = KFAC(model, lr=1.0, damping=0.1, kl_clip=None, fisher=fisher, likelihood="categorical")  # type: ignore[arg-type]  # one of its words

        def closure_of(indices: torch.Tensor, model: nn.Module = model):  # type: ignore[no-untyped-def]
            def closure() -> tuple[torch.Tensor, torch.Tensor]:
                output = model(x[indices])
                return nn.functional.cross_entropy(output, y[indices]), output

            return closure

        *others, last = BatchSizes(effective_batch_size=4096, micro_limit=micro, n_train=4096).of_update(0)
        parts = torch.arange(4096).split([*others, last])
        for part in parts[:-1]:
            optimizer.accumulate(closure_of(part))
        optimizer.step(closure_of(parts[-1]))
        assert len(parts) == 4096 // micro
        changes.append([p.detach() - before for p, before in zip(model.parameters(), start, strict=True)])
    for whole, accumulated in zip(*changes, strict=True):
        scale = float(whole.abs().max())
        assert scale > 1e-3
        torch.testing.assert_close(accumulated, whole, rtol=0, atol=rtol * scale)
