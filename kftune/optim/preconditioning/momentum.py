"""What the methods share that give layers a preconditioned gradient, and all parameters momentum."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kftune.optim.checks import check_range
from kftune.optim.curvature.layers import ConvLayer, Layer
from kftune.optim.curvature.likelihoods import Fisher, Likelihood
from kftune.optim.curvature.statistics import WeightSharing
from kftune.optim.preconditioning.layerwise import LayerwiseOptimizer
from kftune.optim.updates.momentum import l2_coefficient, momentum_step


class MomentumOptimizer(LayerwiseOptimizer):
    """v ← μv + d; θ ← θ − ηv, with d a subclass' direction for layers, and the gradient for everything else.

    A subclass implements :meth:`_directions` and :meth:`_will_be_inverted`, and calls :meth:`_move`.

    Args:
        model: the network.
        lr: learning rate η.
        damping: λ.
        factor_decay: weight on the old factors, in [0, 1].
        momentum: μ, in [0, 1).
        nesterov: θ ← θ − η(d + μv) instead.
        weight_decay: ℓ2 coefficient.
        decoupled_weight_decay: θ ← (1 − η·weight_decay)θ before the update instead; see
            :func:`kftune.optim.updates.momentum.momentum_step`.
        damped_weight_decay: whether the ℓ2 coefficient adds to λ; see :meth:`MomentumOptimizer._dampings`.
        likelihood: the model's predictive distribution.
        fisher: whose output gradients make G; None gathers no G.
        weight_sharing: see :data:`kftune.optim.curvature.statistics.WeightSharing`.
        seed: of the drawn labels.
        treatment: what :meth:`coverage` calls the layer-wise rule.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        damping: float,
        factor_decay: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        decoupled_weight_decay: bool,
        damped_weight_decay: bool,
        likelihood: Likelihood,
        fisher: Fisher | None,
        weight_sharing: WeightSharing,
        seed: int,
        treatment: str,
    ) -> None:
        check_range("lr", lr)
        check_range("damping", damping, low_in=False)
        check_range("factor_decay", factor_decay, high=1.0, high_in=True)
        check_range("momentum", momentum, high=1.0)
        check_range("weight_decay", weight_decay)
        super().__init__(
            model,
            {
                "lr": lr,
                "momentum": momentum,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "damping": damping,
            },
            likelihood=likelihood,
            fisher=fisher,
            weight_sharing=weight_sharing,
            seed=seed,
            treatment=treatment,
            fallback="SGD",
        )
        self._factor_decay = factor_decay
        self._damped_weight_decay = damped_weight_decay

    # What a subclass decides.

    @abstractmethod
    def _directions(self) -> dict[nn.Parameter, Tensor]:
        """d of every parameter that has a gradient."""

    @abstractmethod
    def _will_be_inverted(self, name: str) -> bool:
        """Whether this update can precondition a layer."""

    def _factors_are_cheaper(self, layer: Layer, n_rows: int) -> bool:
        """Whether preconditioning ``n_rows`` rows of (g, ā) takes less than preconditioning V."""
        return False

    # What they share.

    def _prefers_factors(self, layer: Layer, n_rows: int) -> bool:
        if not (self._factors_are_cheaper(layer, n_rows) and self._will_be_inverted(layer.name)):
            return False
        # Else W would have to be preconditioned too, or patches would have to be made.
        return l2_coefficient(self._groups()[layer.weight]) == 0 and not isinstance(layer, ConvLayer)

    def _dampings(self) -> dict[str, float]:
        """Layer → what its curvature is damped by, from the weight's group: λ + ζ with ``damped_weight_decay``, else λ.

        The objective's curvature is F + ζI, ζ the ℓ2 coefficient, and so its Tikhonov damping is F + (λ + ζ)I (Martens,
        Grosse 2015, section 6.3). In the paper the quadratic model shortens a step that is too long. Without it λ alone
        is unsafe: a weight that no gradient reaches moves by −ηζ/λ times itself, which diverges from ηζ > 2λ on; with
        λ + ζ by at most −η times itself.
        """
        groups = self._groups()
        return {name: self._damping_of(groups[layer.weight]) for name, layer in self._layers.items()}

    def _damping_of(self, group: Mapping[str, Any]) -> float:
        damping: float = group["damping"]
        return damping + l2_coefficient(group) if self._damped_weight_decay else damping

    def _move(self) -> None:
        """Change the parameters by this update's directions, and count it."""
        self._take(self._checked_directions())

    def _checked_directions(self) -> dict[nn.Parameter, Tensor]:
        """d of this update, finite."""
        with self.phases.phase("preconditioning"):
            directions = self._directions()
            self._check_directions(directions.values())
        return directions

    def _take(self, directions: Mapping[nn.Parameter, Tensor]) -> None:
        """Change the parameters by ``directions``, and count the update."""
        self._commit()
        with self.phases.phase("update"):
            momentum_step(self, directions)
        self._n_updates += 1
