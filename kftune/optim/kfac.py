"""K-FAC with block-diagonal curvature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kftune.optim._base import Likelihood, OptimizerEntry, check_choice, check_count, check_periods, check_range
from kftune.optim._damping import DAMPING_METHODS, DampingMethod, make_preconditioners, precondition
from kftune.optim._factors import decay_of
from kftune.optim._kl_clip import kl_clip_factor
from kftune.optim._layerwise import LayerwiseOptimizer
from kftune.optim._likelihoods import FISHERS, Fisher
from kftune.optim._momentum import decayed_gradients, momentum_step
from kftune.space import Float, Int, Space


class KFAC(LayerwiseOptimizer):
    """P = (F + damping)⁻¹V layer by layer with F = A ⊗ G; v ← μv + νP; [W b] ← [W b] − ηv.

    Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015 (block-diagonal).
    A and G are running averages with the weight min(1 − 1/k, factor_decay) on the old value at the k-th statistics
    update. Linear layers are preconditioned (inputs with more than two dimensions: every position is a row, "expand").
    All other parameters, and layers not seen by any statistics update yet, are updated by SGD with the same learning
    rate, momentum and weight decay. The loss must be a mean over examples.

    Args:
        model: the network.
        lr: learning rate η.
        damping: λ, in units of the curvature of the per-example loss.
        damping_method: ``factored``, ``exact`` or ``plain``; see :mod:`kftune.optim._damping`.
        fisher: ``mc`` (a label drawn from the model per example), ``exact`` (one pass per output), ``empirical`` (the
            training labels, no pass of its own) or ``permuted`` (the batch's predictions, dealt out at random).
        factor_decay: weight on the old factors, in [0, 1]; 0 uses the last statistics alone.
        statistics_every: updates between two statistics.
        inverses_every: updates between two inversions; a multiple of ``statistics_every``.
        warmup_updates: both periods grow with the number k of updates done, as 1 + k // ``warmup_updates``, until they
            are what the arguments say: at first the network changes too fast for old curvature. 0 for no warm-up.
        kl_clip: κ of ν = min(1, √(κ/(η²Σ⟨P, V⟩))), the learning rate inside; None for no clip.
        momentum: μ, in [0, 1), applied after the clip.
        nesterov: θ ← θ − η(P + μv) instead.
        weight_decay: ℓ2 coefficient, added to the gradient before it is preconditioned.
        likelihood: the model's predictive distribution.
        seed: of the drawn labels.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        damping: float = 1e-2,
        damping_method: DampingMethod = "factored",
        fisher: Fisher = "mc",
        factor_decay: float = 0.95,
        statistics_every: int = 10,
        inverses_every: int = 100,
        warmup_updates: int = 10,
        kl_clip: float | None = 1e-3,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        likelihood: Likelihood,
        seed: int = 0,
    ) -> None:
        check_range("lr", lr)
        check_range("damping", damping, low_in=False)
        check_choice("damping_method", damping_method, DAMPING_METHODS)
        check_choice("fisher", fisher, FISHERS)
        check_range("factor_decay", factor_decay, high=1.0, high_in=True)
        check_periods(statistics_every, inverses_every)
        check_count("warmup_updates", warmup_updates, low=0)
        if kl_clip is not None:
            check_range("kl_clip", kl_clip, low_in=False)
        check_range("momentum", momentum, high=1.0)
        check_range("weight_decay", weight_decay)
        super().__init__(
            model,
            {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "damping": damping},
            likelihood=likelihood,
            fisher=fisher,
            seed=seed,
            treatment="Kronecker-factored",
            fallback="SGD",
        )
        self._damping_method = damping_method
        self._factor_decay = factor_decay
        self._statistics_every, self._inverses_every = statistics_every, inverses_every
        self._warmup_updates = warmup_updates
        self._last_statistics: int | None = None
        self._last_inversion: int | None = None
        self._kl_clip = kl_clip

    def _statistics_due(self) -> bool:
        return self._inverses_due() or self._due(self._statistics_every, self._last_statistics)

    def _inverses_due(self) -> bool:
        return self._due(self._inverses_every, self._last_inversion)

    def _due(self, every: int, last: int | None) -> bool:
        if last is None:
            return True
        if self._warmup_updates:
            every = min(every, 1 + self._n_updates // self._warmup_updates)
        return self._n_updates - last >= every

    def _update(self) -> None:
        invert = self._inverses_due()
        if self._statistics_due():
            with self.phases.phase("statistics"):
                self._average_factors()
            self._last_statistics = self._n_updates
        if invert:
            with self.phases.phase("inversion"):
                self._invert()
            self._last_inversion = self._n_updates
        with self.phases.phase("preconditioning"):
            directions = self._directions()
            self._check_directions(directions)
        with self.phases.phase("update"):
            momentum_step(self, directions)
        self._n_updates += 1

    def _extra_state(self) -> dict[str, Any]:
        return super()._extra_state() | {
            "last_statistics": self._last_statistics,
            "last_inversion": self._last_inversion,
        }

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        super()._load_extra_state(extra)
        self._last_statistics, self._last_inversion = extra["last_statistics"], extra["last_inversion"]

    def _average_factors(self) -> None:
        """A ← εA + (1 − ε)A_batch, the same for G."""
        inputs, gradients = self._statistics.input_covariances(), self._statistics.gradient_covariances()
        self._check_gathered(inputs)
        self._n_statistics += 1
        decay = decay_of(self._n_statistics, self._factor_decay)
        self._average("input_covariance", inputs, decay)
        self._average("gradient_covariance", gradients, decay)

    def _invert(self) -> None:
        seen = {name: state for name, state in self._layer_state.items() if "gradient_covariance" in state}
        factors = {name: (state["input_covariance"], state["gradient_covariance"]) for name, state in seen.items()}
        for name, preconditioner in make_preconditioners(factors, self._dampings(), self._damping_method).items():
            self._layer_state[name].update(preconditioner)

    def _directions(self) -> dict[nn.Parameter, Tensor]:
        """νP for the layers, the gradient for the rest."""
        gradients = decayed_gradients(self)
        preconditioned: dict[nn.Parameter, Tensor] = {}
        dampings, groups = self._dampings(), self._groups()
        for name in self._layers_with_gradient():
            layer, state = self._layers[name], self._layer_state[name]
            if "gradient_inverse" in state or "gradient_vectors" in state:
                preconditioned |= layer.split(precondition(layer.join(gradients), state, dampings[name]))
        if self._kl_clip is not None and preconditioned:
            scale = kl_clip_factor(
                list(preconditioned.values()),
                [gradients[p] for p in preconditioned],
                [groups[p]["lr"] for p in preconditioned],
                self._kl_clip,
            )
            torch._foreach_mul_(list(preconditioned.values()), scale)
        return gradients | preconditioned


_INVALID: tuple[tuple[dict[str, Any], str], ...] = (
    ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
    ({"damping": 0.0}, "damping must be in (0, inf), got 0.0"),
    ({"damping_method": "tikhonov"}, "damping_method must be one of factored, exact, plain, got 'tikhonov'"),
    ({"fisher": "true"}, "fisher must be one of mc, exact, empirical, permuted, got 'true'"),
    ({"factor_decay": 1.1}, "factor_decay must be in [0, 1], got 1.1"),
    ({"statistics_every": 0}, "statistics_every must be a whole number of at least 1, got 0"),
    ({"statistics_every": 10, "inverses_every": 15}, "inverses_every must be a multiple of statistics_every"),
    ({"kl_clip": 0.0}, "kl_clip must be in (0, inf), got 0.0"),
    ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
    ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
    ({"likelihood": "poisson"}, "likelihood must be one of categorical, gaussian, bernoulli, got 'poisson'"),
)

ENTRIES = (
    OptimizerEntry(
        name="kfac",
        cls=KFAC,
        summary="Kronecker-factored approximate curvature, block-diagonal",
        paper="Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015",
        space=Space(
            {
                "lr": Float(low=1e-3, high=3.0, log=True),
                "damping": Float(low=1e-3, high=10.0, log=True, relative_to="lr"),
                "kl_clip": Float(low=1e-4, high=1e-1, log=True),
                "momentum": Float(low=0.0, high=0.98, log=True, complement=True),
                "batch_size": Int(low=32, high=1024, log=True),
            },
            {"statistics_every": 5, "inverses_every": 20},
        ),
        second_order=True,
        example={"lr": 0.1, "damping": 0.01, "statistics_every": 1, "inverses_every": 5},
        invalid=_INVALID,
        deterministic={"fisher": "exact"},
    ),
)
