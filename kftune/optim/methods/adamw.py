"""Adam with decoupled weight decay."""

from __future__ import annotations

from torch import nn

from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import ModelOptimizer
from kftune.optim.updates.adam import adamw_group, adamw_group_step
from kftune.space import Float, Int, Space


class AdamW(ModelOptimizer):
    """Adam with decoupled weight decay; equal to :class:`torch.optim.AdamW`.

    Args:
        model: the network.
        lr: learning rate.
        beta1: decay of the gradient's running average, in [0, 1).
        beta2: decay of the squared gradient's running average, in [0, 1).
        eps: added to the root of the latter.
        weight_decay: each update multiplies the parameters by 1 − lr·weight_decay.
        likelihood: the model's predictive distribution, only to check the shape of its output; None for any.
        seed: not used; every optimizer of kftune takes it.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    averages_squares = True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        likelihood: Likelihood | None = None,
        seed: int = 0,
    ) -> None:
        parameters = list(model.parameters())
        group = adamw_group(parameters, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
        super().__init__(model, group, likelihood=likelihood)

    def _update(self) -> None:
        with self.phases.phase("update"):
            for group in self.param_groups:
                adamw_group_step(self, group, group["params"])

    def coverage(self) -> dict[str, str]:
        """Parameter name → ``"AdamW"`` or ``"frozen"``."""
        return self._coverage("AdamW")


ENTRIES = (
    OptimizerEntry(
        name="adamw",
        cls=AdamW,
        summary="Adam with decoupled weight decay",
        paper="Loshchilov, Hutter: Decoupled weight decay regularization, 2019",
        space=Space(
            {
                "lr": Float(low=1e-5, high=3e-2, log=True),
                "beta1": Float(low=0.5, high=0.99, log=True, complement=True),
                "beta2": Float(low=0.9, high=0.9999, log=True, complement=True),
                "weight_decay": Float(low=1e-5, high=1.0, log=True),
                "batch_size": Int(low=16, high=1024, log=True),
            }
        ),
        second_order=False,
        example={"lr": 0.01},
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"beta1": 1.0}, "beta1 must be in [0, 1), got 1.0"),
            ({"beta2": -0.1}, "beta2 must be in [0, 1), got -0.1"),
            ({"eps": 0.0}, "eps must be in (0, inf), got 0.0"),
            ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
        ),
    ),
)
