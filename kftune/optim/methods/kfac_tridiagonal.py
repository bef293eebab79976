"""K-FAC with block-tridiagonal inverse curvature, for chains of linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.autograd.graph import Node

from kftune.optim.costs.layerwise import kfac_tridiagonal_floor
from kftune.optim.curvature.capture import Capture
from kftune.optim.curvature.gathering import Use
from kftune.optim.curvature.graph import connected
from kftune.optim.curvature.layers import Layer, LinearLayer
from kftune.optim.curvature.likelihoods import Fisher, Likelihood
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import Closure
from kftune.optim.linalg.products import widest
from kftune.optim.preconditioning.adaptive.optimizer import AdaptiveOptimizer
from kftune.optim.preconditioning.adaptive.options import AdaptiveOptions, Rescale
from kftune.optim.preconditioning.damping import Preconditioner
from kftune.optim.preconditioning.kronecker import Preconditioned, Warmup
from kftune.optim.preconditioning.tridiagonal import Cross, End, Link, Moments, apply, invert
from kftune.optim.updates.averages import Decay
from kftune.space import Float, Int, Space


class BlockTridiagonalKFAC(AdaptiveOptimizer):
    """P = F̂⁻¹V with F̂⁻¹ block-tridiagonal over the layers of a chain; v ← μv + νP; [W b] ← [W b] − ηv.

    Martens, Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015, section 4.3.
    F̂ has the same diagonal blocks as block-diagonal K-FAC, with factored Tikhonov damping, and
    A_{i,i+1} ⊗ G_{i,i+1} between neighbours; see :mod:`kftune.optim.preconditioning.tridiagonal`. The cross-moments
    come from the same examples and averages as A and G.

    The model must be a chain: ``nn.Linear`` modules called one after the other, each once in a forward pass, with one
    row per example, each layer's output reaching the model's output through the next layer alone (no skip connection,
    no branches). Their order shows in the first statistics update, and must not change. Between them may be anything
    without matrices of its own, and normalisation layers, whose vectors are updated by SGD with the same learning rate,
    momentum and weight decay; frozen layers only before the first or after the last trained one.

    The paper's block-tridiagonal method sets the length of its updates, their momentum and its dampings by the
    quadratic model, with this P in the place of the block-diagonal one: ``rescale="alpha_and_momentum"``,
    ``adaptive_damping``, ``adaptive_gamma`` and ``averaging``, as :class:`~kftune.optim.methods.kfac.KFAC` has them,
    with λ = 150, lr = 1 and neither ``kl_clip`` nor ``momentum``. By default an update is −ηv as above instead.

    Args:
        model: the network.
        lr: learning rate η.
        damping: λ, in units of the curvature of the per-example loss.
        fisher: ``mc`` (a label drawn from the model per example), ``exact`` (one pass per output), ``empirical`` (the
            training labels, no pass of its own) or ``permuted`` (the batch's predictions, dealt out at random).
        factor_decay: weight on the old factors and cross-moments, in [0, 1]; 0 uses the last statistics alone.
        statistics_every: updates between two statistics.
        inverses_every: updates between two inversions; a multiple of ``statistics_every``.
        warmup_updates: both periods grow with the number k of updates done, as 1 + k // ``warmup_updates``, until they
            are what the arguments say. 0 for no warm-up.
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
        rescale: ``none``; ``alpha``, with μ = 0; or ``alpha_and_momentum``: as K-FAC's, and so the six below.
        adaptive_damping: λ follows the reduction of the objective.
        damping_every: T₁, updates between two changes of λ.
        damped_reduction: whether the model that λ goes by contains λ.
        adaptive_gamma: γ in the place of √λ in the factors' damping follows the quadratic model.
        gamma_every: T₂, least number of updates between two changes of γ.
        averaging: weight on the old average of the iterates, which is what is evaluated; 0 for no average.
        likelihood: the model's predictive distribution.
        seed: of the drawn labels.

    Raises:
        ValueError: an invalid hyperparameter, or a trained matrix outside ``nn.Linear`` or of several modules.
        RuntimeError: from a step, before parameters change: the model is no chain.
    """

    needs_rows = True
    distributed = True
    layer_shapes: ClassVar[dict[str, str]] = {
        **AdaptiveOptimizer.layer_shapes,
        "input_cross": "An",
        "gradient_cross": "Gn",
        "A_regression": "An",
        "G_regression": "Gn",
        "A_basis": "AA",
        "G_basis": "GG",
        "A_values": "A",
        "G_values": "G",
        "A_inverse": "AA",
        "G_inverse": "GG",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        damping: float = 1e-2,
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
            "factored",
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
            weight_sharing="expand",
            likelihood=likelihood,
            seed=seed,
            treatment="block-tridiagonal Kronecker-factored",
            options=options,
            averaging=averaging,
        )
        self._linear = Capture(self._modules_with_matrices(model))
        self._calls: list[str] = []
        self._output: Node | None = None
        self._chain: list[str] | None = None
        self._reset_crosses()

    def _modules_with_matrices(self, model: nn.Module) -> dict[str, nn.Module]:
        """Those that are trained, and those that are not.

        Raises:
            ValueError: another module than a linear layer is trained, or not for itself alone.
        """
        found = {}
        for name, module in model.named_modules():
            own = [p for p in module.parameters(recurse=False) if p.dim() > 1]
            if any(p.requires_grad for p in own) and not isinstance(self._layers.get(name), LinearLayer):
                shared = type(module) is nn.Linear
                why = "its weight is shared with another module" if shared else f"it is {type(module).__name__}"
                raise ValueError(_no_chain(name, why))
            if own:
                found[name] = module
        return found

    # Gathering.

    def _begin(self) -> None:
        super()._begin()
        self._reset_crosses()

    def _reset_crosses(self) -> None:
        self._input_crosses: dict[str, Tensor] = {}
        self._gradient_crosses: dict[str, Tensor] = {}
        self._crosses: dict[str, dict[str, Tensor]] = {}
        self._n_crossed = 0

    def _forward_backward(self, closure: Closure) -> tuple[Tensor, int]:
        if not self._statistics_due():
            return super()._forward_backward(closure)
        self._calls, first = [], True

        def watched() -> tuple[Tensor, Tensor]:
            if not first:  # run again, for the quadratic model
                return closure()
            with self._linear.recording(lambda name, a, s: self._calls.append(name)):
                loss, output = closure()
            self._output = output.grad_fn
            return loss, output

        try:
            return super()._forward_backward(watched)
        finally:
            first = False
            self._output = None  # the graph must not outlive the update

    def _take_rows(self, uses: Sequence[Use], gradients: Sequence[Tensor | None], n_examples: int) -> None:
        if not uses:
            return
        self._check_chain(uses, gradients, n_examples)
        self._chain = [use.module for use in uses]
        layers = [self._layers[name] for name in self._chain]
        if self._n_crossed < self._statistics.n_examples:  # the first output vector of this micro-batch
            self._n_crossed += n_examples
            inputs = [_of_weight(layer, layer.homogeneous_rows(use.a)) for layer, use in zip(layers, uses, strict=True)]
            _add_crosses(self._input_crosses, self._chain, inputs)
        rows = [
            _of_weight(layer, layer.output_rows(g)) for layer, g in zip(layers, gradients, strict=True) if g is not None
        ]
        _add_crosses(self._gradient_crosses, self._chain, rows)

    def _check_chain(self, uses: Sequence[Use], gradients: Sequence[Tensor | None], n_examples: int) -> None:
        """Refuse a forward pass that was no chain, or another one than before.

        Raises:
            RuntimeError: it names the module.
        """
        called = [use.module for use in uses]
        for use, g in zip(uses, gradients, strict=True):
            if called.count(use.module) > 1:
                raise RuntimeError(_no_chain(use.module, "it was called more than once in a forward pass"))
            if use.n_rows != n_examples:
                raise RuntimeError(_no_chain(use.module, f"it was given {use.n_rows} rows for {n_examples} examples"))
            if g is None:
                raise RuntimeError(_no_chain(use.module, "the model's output does not depend on it"))
        first, last = self._calls.index(called[0]), self._calls.index(called[-1])
        for name in self._calls[first:last]:
            if name not in called:
                raise RuntimeError(_no_chain(name, "it is frozen, between trained layers"))
        if self._chain is None:
            self._check_graph(uses)
        elif called != self._chain:
            was, now = ", ".join(self._chain), ", ".join(called)
            name = next((name for name in called + self._chain if (name in called) != (name in self._chain)), called[0])
            raise RuntimeError(_no_chain(name, f"the layers were called in the order {was} before, now {now}"))

    def _check_graph(self, uses: Sequence[Use]) -> None:
        """Refuse a way from a layer's output to the model's that goes round the next layer."""
        for use, following in pairwise(uses):
            if self._output is not None and connected(self._output, use.edge.node, without=following.edge.node):
                why = f"its output reaches the model's output other than through {following.module!r}, called after it"
                raise RuntimeError(_no_chain(use.module, why))

    def _check_gathered(self) -> None:
        missed = [name for name in self._layers_with_gradient() if name not in self._statistics.seen]
        if self._statistics.seen and missed:
            why = "it has a gradient but was not seen in the forward pass (is it in training mode?)"
            raise RuntimeError(_no_chain(missed[0], why))
        super()._check_gathered()

    def _close_statistics(self) -> None:
        super()._close_statistics()
        n = self._statistics.n_examples
        for key, sums in (("input_cross", self._input_crosses), ("gradient_cross", self._gradient_crosses)):
            self._crosses[key] = self._mean_over_processes({name: total / n for name, total in sums.items()})
            self._suspect(f"{key.partition('_')[0]} cross-moment with the next layer", self._crosses[key])

    # The update.

    def _average_statistics(self, decay: Decay) -> None:
        super()._average_statistics(decay)
        for key, crosses in self._crosses.items():
            self._average(key, crosses, decay)
        self._crosses = {}

    def _make_preconditioners(self) -> dict[str, Preconditioner]:
        """Layer → its :class:`Link`, or the :class:`End`."""
        chain, dampings = self._chain or [], self._dampings()
        if not chain:
            return {}
        states = [self._layer_state[name] for name in chain]
        moments = [
            Moments(name, state["input_covariance"], state["gradient_covariance"], dampings[name])
            for name, state in zip(chain, states, strict=True)
        ]
        links, end = invert(moments, [Cross(state["input_cross"], state["gradient_cross"]) for state in states[:-1]])
        parts = [*(link._asdict() for link in links), end._asdict()]
        return dict(zip(chain, parts, strict=True))

    def _install(self, preconditioners: Mapping[str, Preconditioner]) -> None:
        for name, parts in preconditioners.items():
            self._layer_state[name].update(parts)

    def _is_inverted(self, name: str) -> bool:
        return "A_basis" in self._layer_state[name] or "A_inverse" in self._layer_state[name]

    def _precondition(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[str, Preconditioned]:
        chain = self._chain or []
        if not chain:
            return {}
        without = set(chain) - set(self._layers_with_gradient())
        if without:
            raise RuntimeError(_no_chain(min(without), "it has no gradient in this update"))
        states = [self._layer_state[name] for name in chain]
        links = [Link(**{key: state[key] for key in Link._fields}) for state in states[:-1]]
        end = End(**{key: states[-1][key] for key in End._fields})
        directions = apply(links, end, [self._layers[name].join(gradients) for name in chain])
        return {name: Preconditioned(P) for name, P in zip(chain, directions, strict=True)}

    # State.

    def _extra_state(self) -> dict[str, Any]:
        return super()._extra_state() | {"chain": self._chain}

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        super()._load_extra_state(extra)
        self._chain = extra["chain"]


def _no_chain(name: str, why: str) -> str:
    return f"kfac_tridiagonal is for chains of nn.Linear, and module {name!r} does not belong to one: {why}"


def _of_weight(layer: Layer, rows: Tensor) -> Tensor:
    """Rows in the type of the layer's weight: under autocast, inputs and gradients of neighbours can be of two."""
    return rows.to(layer.dtype)


def _add_crosses(sums: dict[str, Tensor], chain: Sequence[str], rows: Sequence[Tensor]) -> None:
    """Add Σ x_i x_{i+1}ᵀ over examples to the sum of every layer of the chain but the last."""
    flat = [own.flatten(0, 1) for own in rows]
    for name, (x, following) in zip(chain, pairwise(flat), strict=False):
        dtype = widest((x, following))
        new = x.T.to(dtype) @ following.to(dtype)
        sums[name] = sums[name] + new if name in sums else new


ENTRIES = (
    OptimizerEntry(
        name="kfac_tridiagonal",
        cls=BlockTridiagonalKFAC,
        summary="K-FAC with block-tridiagonal inverse curvature, for chains of linear layers",
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
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"damping": 0.0}, "damping must be in (0, inf), got 0.0"),
            ({"fisher": "true"}, "fisher must be one of mc, exact, empirical, permuted, got 'true'"),
            ({"factor_decay": 1.1}, "factor_decay must be in [0, 1], got 1.1"),
            ({"statistics_every": 10, "inverses_every": 15}, "inverses_every must be a multiple of statistics_every"),
            ({"kl_clip": 0.0}, "kl_clip must be in (0, inf), got 0.0"),
            ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
            ({"rescale": "alpha"}, "it needs kl_clip=None, momentum=0 and nesterov=False, got kl_clip=0.001"),
            ({"adaptive_gamma": True}, "adaptive_gamma needs rescale='alpha' or 'alpha_and_momentum', got 'none'"),
            ({"averaging": 1.0}, "averaging must be in [0, 1), got 1.0"),
        ),
        deterministic={"fisher": "exact"},
        kl_clip=True,
        chains_only=True,
        floor=kfac_tridiagonal_floor,
    ),
)
