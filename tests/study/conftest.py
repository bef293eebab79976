"""A plug-in package with problems that misbehave, found through real entry points."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PLUGIN = '''
import os
import signal
import time
from dataclasses import replace

import torch

from kftune.problems import PROBLEMS, ProblemEntry


class Misbehaving(torch.nn.Linear):
    """Behaves until its n-th forward pass in training."""

    action = staticmethod(lambda: None)
    calls = 0

    def forward(self, inputs):
        if self.training:
            type(self).calls += 1
            if type(self).calls > 5:
                self.action()
        return super().forward(inputs)


def raise_error():
    raise ValueError("a mistake in the user's own model")


def raise_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 EiB")


def print_garbage():
    print("\\x00\\xff garbage on standard output", flush=True)
    os.write(1, bytes(range(256)))


ACTIONS = {
    "hanging": lambda: time.sleep(3600),
    "raising": raise_error,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfaulting": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "greedy": raise_out_of_memory,
    "printing": print_garbage,
}


def entry(name):
    def make_model():
        cls = type("Model", (Misbehaving,), {"action": staticmethod(ACTIONS[name]), "calls": 0})
        return cls(64, 10)

    def load(*, device, dtype, data_dir):
        digits = PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)
        return replace(digits, name=f"{name}_linear", make_model=make_model)

    return ProblemEntry(
        name=f"{name}_linear", load=load, summary="misbehaves", source="tests", n_train=1437, n_test=360
    )


hanging, raising, killed = entry("hanging"), entry("raising"), entry("killed")
segfaulting, greedy, printing = entry("segfaulting"), entry("greedy"), entry("printing")
'''

NAMES = ("hanging", "raising", "killed", "segfaulting", "greedy", "printing")


@pytest.fixture
def misbehaving_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installs the plug-in for processes started by the test (not for the test's own process)."""
    site = tmp_path / "plugin-site"
    info = site / "misbehaving-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "misbehaving.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    points = "\n".join(f"{name}_linear = misbehaving:{name}" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[kftune.problems]\n{points}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")])))
    return site
