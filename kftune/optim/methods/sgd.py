"""Stochastic gradient descent with Nesterov momentum."""

from __future__ import annotations

from torch import nn

from kftune.optim.checks import check_range
from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import ModelOptimizer
from kftune.optim.updates.momentum import decayed_gradients, momentum_step
from kftune.space import Float, Int, Space


class SGD(ModelOptimizer):
    """v ← μv + ∇; θ ← θ − η(∇ + μv), or θ ← θ − ηv without Nesterov; equal to :class:`torch.optim.SGD`.

    Args:
        model: the network.
        lr: learning rate η.
        momentum: μ, in [0, 1).
        nesterov: whether to look ahead.
        weight_decay: ℓ2 coefficient, added to the gradient as weight_decay·θ.
        decoupled_weight_decay: θ ← (1 − η·weight_decay)θ before the update instead, outside momentum.
        likelihood: the model's predictive distribution, only to check the shape of its output; None for any.
        seed: not used; every optimizer of kftune takes it.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        likelihood: Likelihood | None = None,
        seed: int = 0,
    ) -> None:
        check_range("lr", lr)
        check_range("momentum", momentum, high=1.0)
        check_range("weight_decay", weight_decay)
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        defaults["decoupled_weight_decay"] = decoupled_weight_decay
        super().__init__(model, defaults, likelihood=likelihood)

    def _update(self) -> None:
        with self.phases.phase("update"):
            momentum_step(self, decayed_gradients(self))

    def coverage(self) -> dict[str, str]:
        """Parameter name → ``"SGD"`` or ``"frozen"``."""
        return self._coverage("SGD")


ENTRIES = (
    OptimizerEntry(
        name="sgd",
        cls=SGD,
        summary="Stochastic gradient descent with Nesterov momentum",
        paper="Sutskever et al.: On the importance of initialization and momentum in deep learning, 2013",
        space=Space(
            {
                "lr": Float(low=1e-3, high=3.0, log=True),
                "momentum": Float(low=0.0, high=0.99, log=True, complement=True),
                "batch_size": Int(low=16, high=1024, log=True),
            }
        ),
        second_order=False,
        example={"lr": 0.1, "momentum": 0.9},
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
            ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
        ),
    ),
)
