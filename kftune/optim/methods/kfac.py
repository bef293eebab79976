"""K-FAC with block-diagonal curvature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from kftune.optim.checks import check_choice
from kftune.optim.costs.layerwise import kfac_floor
from kftune.optim.curvature.layers import Layer
from kftune.optim.curvature.likelihoods import Fisher, Likelihood
from kftune.optim.curvature.rows import Rows
from kftune.optim.curvature.statistics import WeightSharing
from kftune.optim.curvature.thin import flat, inner_product, product_flops
from kftune.optim.entry import OptimizerEntry
from kftune.optim.linalg.products import product
from kftune.optim.preconditioning.adaptive.optimizer import AdaptiveOptimizer
from kftune.optim.preconditioning.adaptive.options import AdaptiveOptions, Rescale
from kftune.optim.preconditioning.damping import (
    DAMPING_METHODS,
    PRECONDITIONER_SHAPES,
    DampingMethod,
    Preconditioner,
    is_preconditioner,
    make_preconditioners,
    precondition,
    precondition_rows,
)
from kftune.optim.preconditioning.kronecker import Preconditioned, Warmup
from kftune.space import Float, Int, Space


class KFAC(AdaptiveOptimizer):
    """P = (F + damping)⁻¹V layer by layer with F = A ⊗ G; v ← μv + νP; [W b] ← [W b] − ηv.

    Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015 (block-diagonal);
    for convolutions Grosse, Martens: A Kronecker-factored approximate Fisher matrix for convolution layers, 2016.
    A and G are running averages with the weight min(1 − 1/k, factor_decay) on the old value at the k-th statistics
    update. All parameters outside ``nn.Linear`` and ``nn.Conv2d``, and layers not seen by any statistics update yet,
    are updated by SGD with the same learning rate, momentum and weight decay. The loss must be a mean over examples.

    ``step(closure)`` of a batch smaller than a layer preconditions the two factors of that layer's gradient and leaves
    its ``.grad`` None; ``accumulate(closure)`` followed by ``step()`` always fills ``.grad``, for whoever clips it.

    **The adaptive method** of the first paper (sections 6.4 to 7 and 13), switch by switch, is
    :class:`~kftune.optim.preconditioning.adaptive.optimizer.AdaptiveOptimizer`'s. With ``rescale`` an update is ηδ, δ =
    αΔ + μδ₀, where Δ = −P, δ₀ is the previous update (0 at first), and α and μ minimise the quadratic model M(δ) = h +
    ∇hᵀδ + ½δᵀ(F + (λ + weight decay)I)δ with h the objective, weight decay inside, and F the *exact* Fisher of the
    batch. P is damped by λ + weight decay. What K-FAC does not cover moves along its gradient, a third direction with a
    coefficient of its own. An update runs its closures again for F, and once more where λ is adapted: on the same
    random numbers (of torch's default generators) and without a trace in the model's buffers. All operations must be
    twice differentiable.

    Args:
        model: the network.
        lr: learning rate η.
        damping: λ, in units of the curvature of the per-example loss; where it is adapted, its first value (150 in the
            paper) and from then on the parameter group's current one.
        damping_method: ``factored``, ``exact`` or ``plain``; see :mod:`kftune.optim.preconditioning.damping`.
        fisher: ``mc`` (a label drawn from the model per example), ``exact`` (one pass per output), ``empirical`` (the
            training labels, no pass of its own) or ``permuted`` (the batch's predictions, dealt out at random).
        factor_decay: weight on the old factors, in [0, 1]; 0 uses the last statistics alone.
        statistics_every: updates between two statistics.
        inverses_every: updates between two inversions; a multiple of ``statistics_every``.
        warmup_updates: both periods grow with the number k of updates done, as 1 + k // ``warmup_updates``, until they
            are what the arguments say: at first the network changes too fast for old curvature. 0 for no warm-up.
        warmup_schedule: ``growing``, as said; or ``first_updates``: what is periodic is done in the first
            ``warmup_updates`` updates, and then in the k-th where k is a multiple of its period (Martens, Grosse 2015,
            algorithm 2, with 3 and 20).
        kl_clip: κ of ν = min(1, √(κ/(η²Σ⟨P, V⟩))), the learning rate inside; None for no clip.
        clip_fallback: whether parameters that SGD updates count in the clip, and are shortened with the rest.
        momentum: μ, in [0, 1), applied after the clip.
        nesterov: θ ← θ − η(P + μv) instead.
        weight_decay: ℓ2 coefficient, added to the gradient before it is preconditioned.
        decoupled_weight_decay: θ ← (1 − η·weight_decay)θ before the update instead, outside preconditioner, momentum
            and clip.
        damped_weight_decay: damping by λ + weight_decay, as of the objective's curvature F + weight_decay·I (Martens,
            Grosse 2015, section 6.3). False damps by λ alone, as many programs do: a weight that no gradient reaches
            then moves by η·weight_decay/λ times itself, and grows where that is above 2.
        weight_sharing: positions of sequences and images, as ``expand`` or ``reduce``; see
            :data:`kftune.optim.curvature.statistics.WeightSharing`.
        rescale: ``none``; ``alpha``, with μ = 0; or ``alpha_and_momentum``. These two take the place of ``kl_clip``,
            ``momentum`` and ``nesterov``, which must be None, 0 and False; the paper's ``lr`` is then 1.
        adaptive_damping: λ follows ρ = (h(θ + δ) − h(θ))/(M(δ) − M(0)) by the Levenberg-Marquardt rule: ω₁λ where
            ρ > ¾, λ/ω₁ where ρ < ¼ or h is not finite, with ω₁ = (19/20)^T₁, never below 1e-8. Needs ``rescale``.
        damping_every: T₁, updates between two changes of λ.
        damped_reduction: whether M in ρ contains λ, as in the paper; some implementations leave it out.
        adaptive_gamma: γ, √(λ + weight decay) at first, takes the place of √λ in ``factored`` damping: of ω₂γ, γ and
            γ/ω₂, ω₂ = (19/20)^(T₂/2), the one with the lowest M(δ) is kept. Needs ``rescale``.
        gamma_every: T₂, least number of updates between two changes of γ, which wait for the next inversion; with
            ``warmup_schedule="first_updates"`` γ changes in updates whose number is a multiple of it, as in the paper.
        averaging: d of the average θ̄ ← dθ̄ + (1 − d)θ of the iterates that :meth:`evaluation_parameters` swaps in, in
            [0, 1) (0.99 in the paper); min(1 − 1/k, d) at the k-th update, so that the first ones do not linger. The
            buffers (statistics of batch normalisation) stay those of θ. 0 for no average.
        likelihood: the model's predictive distribution.
        seed: of the drawn labels.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    distributed = True
    layer_shapes: ClassVar[dict[str, str]] = {**AdaptiveOptimizer.layer_shapes, **PRECONDITIONER_SHAPES}

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
        warmup_schedule: Warmup = "growing",
        kl_clip: float | None = 1e-3,
        clip_fallback: bool = False,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        damped_weight_decay: bool = True,
        weight_sharing: WeightSharing = "expand",
        rescale: Rescale = "none",
        adaptive_damping: bool = False,
        damping_every: int = 5,
        damped_reduction: bool = True,
        adaptive_gamma: bool = False,
        gamma_every: int = 20,
        averaging: float = 0.0,
        likelihood: Likelihood,
        seed: int = 0,
    ) -> None:
        check_choice("damping_method", damping_method, DAMPING_METHODS)
        options = AdaptiveOptions(
            rescale=rescale,
            adaptive_damping=adaptive_damping,
            damping_every=damping_every,
            damped_reduction=damped_reduction,
            adaptive_gamma=adaptive_gamma,
            gamma_every=gamma_every,
            gamma_at_multiples=warmup_schedule == "first_updates",
        )
        options.check(
            {"kl_clip": kl_clip, "momentum": momentum, "nesterov": nesterov},
            damping_method,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        super().__init__(
            model,
            lr=lr,
            damping=damping,
            fisher=fisher,
            factor_decay=factor_decay,
            statistics_every=statistics_every,
            inverses_every=inverses_every,
            warmup_updates=warmup_updates,
            warmup_schedule=warmup_schedule,
            kl_clip=kl_clip,
            clip_fallback=clip_fallback,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            damped_weight_decay=damped_weight_decay,
            weight_sharing=weight_sharing,
            likelihood=likelihood,
            seed=seed,
            treatment="Kronecker-factored",
            options=options,
            averaging=averaging,
        )
        self._damping_method = damping_method

    def _make_preconditioners(self) -> dict[str, Preconditioner]:
        return make_preconditioners(
            self._factors(), self._dampings(), self._damping_method, once=self._inverses_every == 1
        )

    def _install(self, preconditioners: Mapping[str, Preconditioner]) -> None:
        for name, preconditioner in preconditioners.items():
            self._layer_state[name].update(preconditioner)

    def _is_inverted(self, name: str) -> bool:
        return is_preconditioner(self._layer_state[name])

    def _factors_are_cheaper(self, layer: Layer, n_rows: int) -> bool:
        if self._damping_method == "exact":  # no product of a left and a right side
            return False
        d_A, d_G = layer.d_A, layer.d_G
        extra = 0.0 if self._kl_clip is None else product_flops(n_rows, d_A, d_G)
        return 2.0 * n_rows * (d_A**2 + d_G**2) + extra < 2.0 * d_A * d_G * (d_A + d_G)

    def _precondition(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[str, Preconditioned]:
        dampings = self._dampings()
        found: dict[str, Preconditioned] = {}
        for name in self._layers_with_gradient():
            state = self._layer_state[name]
            if name in self._gradient_rows:
                found[name] = self._precondition_rows(self._gradient_rows[name], state)
            elif self._is_inverted(name):
                found[name] = Preconditioned(precondition(self._layers[name].join(gradients), state, dampings[name]))
        return found

    def _precondition_rows(self, rows: Rows, preconditioner: dict[str, Tensor]) -> Preconditioned:
        inputs, gradients = flat(rows)
        Y = precondition_rows(inputs, preconditioner, "input")
        X = precondition_rows(gradients, preconditioner, "gradient")
        P = product(X.T, Y / len(rows.inputs))
        return Preconditioned(P, None if self._kl_clip is None else inner_product(rows, Y, X, P))


INVALID: tuple[tuple[dict[str, Any], str], ...] = (
    ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
    ({"damping": 0.0}, "damping must be in (0, inf), got 0.0"),
    ({"damping_method": "tikhonov"}, "damping_method must be one of factored, exact, plain, got 'tikhonov'"),
    ({"fisher": "true"}, "fisher must be one of mc, exact, empirical, permuted, got 'true'"),
    ({"factor_decay": 1.1}, "factor_decay must be in [0, 1], got 1.1"),
    ({"statistics_every": 0}, "statistics_every must be a whole number of at least 1, got 0"),
    ({"statistics_every": 10, "inverses_every": 15}, "inverses_every must be a multiple of statistics_every"),
    ({"warmup_schedule": "none"}, "warmup_schedule must be one of growing, first_updates, got 'none'"),
    ({"kl_clip": 0.0}, "kl_clip must be in (0, inf), got 0.0"),
    ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
    ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
    ({"weight_sharing": "both"}, "weight_sharing must be one of expand, reduce, got 'both'"),
    ({"averaging": 1.0}, "averaging must be in [0, 1), got 1.0"),
    ({"adaptive_damping": True}, "adaptive_damping needs rescale='alpha' or 'alpha_and_momentum', got 'none'"),
    ({"adaptive_gamma": True}, "adaptive_gamma needs rescale='alpha' or 'alpha_and_momentum', got 'none'"),
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
        floor=kfac_floor,
        example={"lr": 0.1, "damping": 0.01, "statistics_every": 1, "inverses_every": 5},
        invalid=INVALID,
        deterministic={"fisher": "exact"},
        kl_clip=True,
    ),
)
