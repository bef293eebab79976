"""An optimizer is one file: put beside the others it is found, and the suites of all optimizers run on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CONTRACT = Path(__file__).parent / "contract"

FILE = '''
"""Lion."""

from __future__ import annotations

import torch
from torch import nn

from kftune.optim.checks import check_range
from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import ModelOptimizer
from kftune.space import Float, Int, Space


class Lion(ModelOptimizer):
    """θ ← θ − η(sign(β₁m + (1 − β₁)g) + ωθ); m ← β₂m + (1 − β₂)g.

    Chen et al.: Symbolic discovery of optimization algorithms, 2023, algorithm 2.

    Args:
        model: the network.
        lr: learning rate η.
        beta1: weight on m in the step.
        beta2: weight on m in its average.
        weight_decay: ω, decoupled.
        likelihood: not used.
        seed: not used.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
        likelihood: Likelihood | None = None,
        seed: int = 0,
    ) -> None:
        check_range("lr", lr)
        check_range("beta1", beta1, high=1.0)
        check_range("beta2", beta2, high=1.0)
        check_range("weight_decay", weight_decay)
        super().__init__(model, {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay})

    def _update(self) -> None:
        with self.phases.phase("update"):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    m = self.state[p].setdefault("average", torch.zeros_like(p))
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(torch.lerp(p.grad, m, group["beta1"]).sign_(), alpha=group["lr"])
                    m.lerp_(p.grad, 1 - group["beta2"])

    def coverage(self) -> dict[str, str]:
        return self._coverage("Lion")


ENTRIES = (
    OptimizerEntry(
        name="newcomer_lion",
        cls=Lion,
        summary="the sign of an interpolated momentum",
        paper="Chen et al. 2023",
        space=Space(
            {
                "lr": Float(low=1e-5, high=1e-1, log=True),
                "batch_size": Int(low=16, high=512, log=True),
            }
        ),
        example={"lr": 0.01},
        invalid=(({"lr": -1.0}, "lr must be"), ({"beta1": 1.0}, "beta1 must be"), ({"beta2": 1.0}, "beta2 must be")),
        second_order=False,
    ),
)
'''

RUN = """
import sys
import pytest
import kftune.optim.methods
kftune.optim.methods.__path__.append(sys.argv[1])
sys.exit(pytest.main([sys.argv[2], "-k", "newcomer_lion", "-p", "no:cacheprovider", "-o", "addopts="]))
"""


def test_a_file_with_an_optimizer_is_all_it_takes(tmp_path: Path) -> None:
    (tmp_path / "newcomer.py").write_text(FILE)
    done = subprocess.run(
        [sys.executable, "-c", RUN, tmp_path, CONTRACT],
        cwd=CONTRACT.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) > 40, done.stdout
