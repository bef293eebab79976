"""K-FAC with block-diagonal curvature, and what its first paper adapts while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from kftune.optim.checks import check_choice, check_range
from kftune.optim.costs.layerwise import kfac_floor
from kftune.optim.curvature.layers import ConvLayer, Layer
from kftune.optim.curvature.likelihoods import Fisher, Likelihood
from kftune.optim.curvature.rows import Rows
from kftune.optim.curvature.statistics import WeightSharing
from kftune.optim.curvature.thin import flat, inner_product, product_flops
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import Closure
from kftune.optim.linalg.products import product
from kftune.optim.preconditioning.adaptive import Adaptation, AdaptiveOptions, Rescale, Trial
from kftune.optim.preconditioning.damping import (
    DAMPING_METHODS,
    DampingMethod,
    Preconditioner,
    is_preconditioner,
    make_preconditioners,
    precondition,
    precondition_rows,
)
from kftune.optim.preconditioning.kronecker import KroneckerOptimizer, Preconditioned
from kftune.optim.preconditioning.quadratic_model import Direction
from kftune.optim.updates.averages import average_iterates, averages_swapped_in, decay_of
from kftune.optim.updates.momentum import decayed_gradients
from kftune.space import Float, Int, Space, Value


class KFAC(KroneckerOptimizer):
    """P = (F + damping)⁻¹V layer by layer with F = A ⊗ G; v ← μv + νP; [W b] ← [W b] − ηv.

    Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015 (block-diagonal);
    for convolutions Grosse, Martens: A Kronecker-factored approximate Fisher matrix for convolution layers, 2016.
    A and G are running averages with the weight min(1 − 1/k, factor_decay) on the old value at the k-th statistics
    update. All parameters outside ``nn.Linear`` and ``nn.Conv2d``, and layers not seen by any statistics update yet,
    are updated by SGD with the same learning rate, momentum and weight decay. The loss must be a mean over examples.

    ``step(closure)`` of a batch smaller than a layer preconditions the two factors of that layer's gradient and leaves
    its ``.grad`` None; ``accumulate(closure)`` followed by ``step()`` always fills ``.grad``, for whoever clips it.

    **The adaptive method** of the first paper (sections 6.4 to 7 and 13), switch by switch. With ``rescale`` an update
    is ηδ, δ = αΔ + μδ₀, where Δ = −P, δ₀ is the previous update (0 at first), and α and μ minimise the quadratic model
    M(δ) = h + ∇hᵀδ + ½δᵀ(F + (λ + weight decay)I)δ with h the objective, weight decay inside, and F the *exact* Fisher
    of the batch. P is damped by λ + weight decay. What K-FAC does not cover moves along its gradient, a third direction
    with a coefficient of its own. An update runs its closures again for F, and once more where λ is adapted: on the
    same random numbers (of torch's default generators) and without a trace in the model's buffers. All operations must
    be twice differentiable.

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
        kl_clip: κ of ν = min(1, √(κ/(η²Σ⟨P, V⟩))), the learning rate inside; None for no clip.
        momentum: μ, in [0, 1), applied after the clip.
        nesterov: θ ← θ − η(P + μv) instead.
        weight_decay: ℓ2 coefficient, added to the gradient before it is preconditioned.
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
        gamma_every: T₂, least number of updates between two changes of γ, which wait for the next inversion.
        averaging: d of the average θ̄ ← dθ̄ + (1 − d)θ of the iterates that :meth:`evaluation_parameters` swaps in, in
            [0, 1) (0.99 in the paper); min(1 − 1/k, d) at the k-th update, so that the first ones do not linger. The
            buffers (statistics of batch normalisation) stay those of θ. 0 for no average.
        likelihood: the model's predictive distribution.
        seed: of the drawn labels.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    distributed = True

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
        check_range("averaging", averaging, high=1.0)
        options = AdaptiveOptions(
            rescale=rescale,
            adaptive_damping=adaptive_damping,
            damping_every=damping_every,
            damped_reduction=damped_reduction,
            adaptive_gamma=adaptive_gamma,
            gamma_every=gamma_every,
        )
        options.check({"kl_clip": kl_clip, "momentum": momentum, "nesterov": nesterov}, damping_method)
        super().__init__(
            model,
            lr=lr,
            damping=damping,
            fisher=fisher,
            factor_decay=factor_decay,
            statistics_every=statistics_every,
            inverses_every=inverses_every,
            warmup_updates=warmup_updates,
            kl_clip=kl_clip,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            weight_sharing=weight_sharing,
            likelihood=likelihood,
            seed=seed,
            treatment="Kronecker-factored",
        )
        self._damping_method = damping_method
        self._averaging = averaging
        self._adaptation: Adaptation | None = None
        if rescale != "none":
            self._adaptation = Adaptation(model, likelihood, options, damping + weight_decay)
            self._fallback = "gradient, length by the quadratic model"

    # The block-diagonal curvature.

    def _invert(self) -> None:
        self._install(self._make_preconditioners())

    def _make_preconditioners(self) -> dict[str, Preconditioner]:
        return make_preconditioners(
            self._factors(), self._dampings(), self._damping_method, once=self._inverses_every == 1
        )

    def _install(self, preconditioners: Mapping[str, Preconditioner]) -> None:
        for name, preconditioner in preconditioners.items():
            self._layer_state[name].update(preconditioner)

    def _dampings(self) -> dict[str, float]:
        if self._adaptation is None:
            return super()._dampings()
        group = self.param_groups[0]
        adapted = self._adaptation.options.adaptive_gamma
        damping = self._adaptation.gamma**2 if adapted else group["damping"] + group["weight_decay"]
        return dict.fromkeys(self._layers, damping)

    def _is_inverted(self, name: str) -> bool:
        return is_preconditioner(self._layer_state[name])

    def _prefers_factors(self, layer: Layer, n_rows: int) -> bool:
        if self._damping_method == "exact" or not (self._inverses_due() or self._is_inverted(layer.name)):
            return False
        if self._adaptation is not None:
            return False  # the quadratic model needs the gradient
        if self._groups()[layer.weight]["weight_decay"] != 0 or isinstance(layer, ConvLayer):
            return False  # W would have to be preconditioned too; patches would have to be made
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

    # The adaptive method.

    def _begin(self) -> None:
        super()._begin()
        if self._adaptation is not None:
            self._adaptation.replay.clear()

    def _forward_backward(self, closure: Closure) -> tuple[Tensor, int]:
        if self._adaptation is None:
            return super()._forward_backward(closure)
        random = self._adaptation.replay.random_state()
        loss, n_examples = super()._forward_backward(closure)
        self._adaptation.replay.add(closure, random, loss, n_examples)
        return loss, n_examples

    def _update(self) -> None:
        if self._adaptation is None:
            super()._update()
        else:
            self._update_by_model(self._adaptation)
            self._adaptation.replay.clear()
        if self._averaging:
            with self.phases.phase("update"):
                trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
                average_iterates(self.state, trained, decay_of(self._n_updates, self._averaging))

    def _update_by_model(self, adaptation: Adaptation) -> None:
        """θ ← θ + ηδ with δ = αΔ + μδ₀ at the lowest M, γ kept if that was its doing; then λ by the reduction of h."""
        group = self.param_groups[0]
        self._renew_averages()
        gradient = decayed_gradients(self)
        trials = self._trials(adaptation, gradient)
        with self.phases.phase("statistics"):
            step = adaptation.step(
                gradient,
                [trial.direction for trial in trials],
                self.state,
                lr=group["lr"],
                damping=group["damping"],
                weight_decay=group["weight_decay"],
            )
        self._record("alpha", step.alpha)
        self._record("momentum", step.momentum)
        chosen = trials[step.trial]
        adaptation.gamma = chosen.gamma
        self._install(chosen.preconditioners)
        with self.phases.phase("update"):
            adaptation.take(step, self.state)
            if adaptation.damping_is_due(self._n_updates):
                group["damping"] = adaptation.adapted_damping(group["damping"], step, group["weight_decay"])
        self._n_updates += 1

    def _trials(self, adaptation: Adaptation, gradient: Direction) -> list[Trial]:
        """Δ for every γ that is tried in this update, mostly one."""
        if not self._inverses_due():
            return [Trial(adaptation.gamma, {}, self._natural(gradient))]
        trials = []
        for gamma in adaptation.gammas(self._n_updates):
            adaptation.gamma = gamma
            with self.phases.phase("inversion"):
                preconditioners = self._make_preconditioners()
                self._install(preconditioners)
            trials.append(Trial(gamma, preconditioners, self._natural(gradient)))
        self._last_inversion = self._n_updates
        return trials

    def _natural(self, gradient: Direction) -> Direction:
        """Δ = −P, of the parameters of layers that have been inverted."""
        with self.phases.phase("preconditioning"):
            found = {name: found.P.neg_() for name, found in self._precondition(gradient).items()}
            self._check_directions(found.values())
            return self._split(found)

    def evaluation_parameters(self) -> AbstractContextManager[None]:
        """Inside the block the model holds the average of the iterates, if there is one (``averaging``)."""
        return averages_swapped_in(self.state)

    def readings(self) -> dict[str, float]:
        """As every optimizer's; with ``rescale`` also the mean ``alpha`` (of Δ) and ``momentum`` (of δ₀), which come
        from the quadratic model, and with ``adaptive_gamma`` the present ``gamma``.
        """
        values = super().readings()
        if self._adaptation is not None and self._adaptation.options.adaptive_gamma:
            values["gamma"] = self._adaptation.gamma
        return values

    def _extra_state(self) -> dict[str, Any]:
        return super()._extra_state() | {"adaptation": self._adaptation and self._adaptation.state()}

    def _check_extra_state(self, extra: dict[str, Any]) -> None:
        super()._check_extra_state(extra)
        if (self._adaptation is None) != (extra["adaptation"] is None):
            its, own = ("plain", "adaptive") if extra["adaptation"] is None else ("adaptive", "plain")
            raise ValueError(f"the state_dict is one of {its} K-FAC, this optimizer is {own}: see its options")

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        super()._load_extra_state(extra)
        if self._adaptation is not None:
            self._adaptation.load(extra["adaptation"])


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
    ({"weight_sharing": "both"}, "weight_sharing must be one of expand, reduce, got 'both'"),
    ({"averaging": 1.0}, "averaging must be in [0, 1), got 1.0"),
    ({"adaptive_damping": True}, "adaptive_damping needs rescale='alpha' or 'alpha_and_momentum', got 'none'"),
    ({"adaptive_gamma": True}, "adaptive_gamma needs rescale='alpha' or 'alpha_and_momentum', got 'none'"),
    ({"likelihood": "poisson"}, "likelihood must be one of categorical, gaussian, bernoulli, got 'poisson'"),
)

_ADAPTIVE: dict[str, Value] = {
    "rescale": "alpha_and_momentum",
    "adaptive_damping": True,
    "adaptive_gamma": True,
    "lr": 1.0,
    "kl_clip": None,
    "momentum": 0.0,
}
_OWN_STEP: dict[str, Any] = {"rescale": "alpha", "kl_clip": None, "momentum": 0.0}
_INVALID_ADAPTIVE: tuple[tuple[dict[str, Any], str], ...] = (
    ({"rescale": "beta"}, "rescale must be one of none, alpha, alpha_and_momentum, got 'beta'"),
    ({"rescale": "alpha"}, "it needs kl_clip=None, momentum=0 and nesterov=False, got kl_clip=0.001, momentum=0.9"),
    ({**_OWN_STEP, "kl_clip": 0.1}, "it needs kl_clip=None, momentum=0 and nesterov=False, got kl_clip=0.1"),
    ({**_OWN_STEP, "nesterov": True}, "it needs kl_clip=None, momentum=0 and nesterov=False, got nesterov=True"),
    ({**_OWN_STEP, "damping_every": 0}, "damping_every must be a whole number of at least 1, got 0"),
    ({**_OWN_STEP, "gamma_every": 0}, "gamma_every must be a whole number of at least 1, got 0"),
    (
        {**_OWN_STEP, "adaptive_gamma": True, "damping_method": "exact"},
        "adaptive_gamma needs damping_method='factored', got 'exact'",
    ),
    *_INVALID,
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
        invalid=_INVALID,
        deterministic={"fisher": "exact"},
    ),
    OptimizerEntry(
        name="kfac_adaptive",
        cls=KFAC,
        summary="K-FAC that sets its own step length, momentum and damping, and evaluates averaged parameters",
        paper="Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015",
        space=Space(
            {
                "damping": Float(low=1e-3, high=1e3, log=True),
                "averaging": Float(low=0.0, high=0.99, log=True, complement=True),
                "batch_size": Int(low=32, high=1024, log=True),
            },
            {**_ADAPTIVE, "statistics_every": 1, "inverses_every": 20, "warmup_updates": 3},
        ),
        second_order=True,
        floor=kfac_floor,
        example={**_ADAPTIVE, "damping": 1.0, "statistics_every": 1, "inverses_every": 5},
        invalid=_INVALID_ADAPTIVE,
        deterministic={"fisher": "exact"},
    ),
)
