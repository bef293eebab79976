"""SKFAC: K-FAC of the last batch alone, inverted by the batch's own rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from torch import Tensor, nn

from kftune.optim.checks import check_choice, check_count
from kftune.optim.costs.layerwise import skfac_floor
from kftune.optim.curvature.layers import Layer
from kftune.optim.curvature.likelihoods import Fisher, Likelihood
from kftune.optim.curvature.row_statistics import RowStatistics
from kftune.optim.curvature.rows import Rows
from kftune.optim.curvature.rows_or_gram import Sample
from kftune.optim.curvature.statistics import WeightSharing
from kftune.optim.curvature.thin import flat, inner_product, product_flops
from kftune.optim.entry import OptimizerEntry
from kftune.optim.linalg.products import product
from kftune.optim.preconditioning.damping import split_by_means
from kftune.optim.preconditioning.gram_sides import Side, apply, flops_of_a_row, make_sides, reduced
from kftune.optim.preconditioning.kronecker import KroneckerOptimizer, Preconditioned, Warmup
from kftune.optim.updates.averages import Decay
from kftune.space import Float, Int, Space

RowDampingMethod: TypeAlias = Literal["factored", "plain"]
ROW_DAMPING_METHODS: tuple[str, ...] = get_args(RowDampingMethod)


class SKFAC(KroneckerOptimizer):
    """P = (G + λ_G I)⁻¹V(A + λ_A I)⁻¹ layer by layer; v ← μv + νP; [W b] ← [W b] − ηv.

    Tang et al.: SKFAC: training neural networks with faster Kronecker-factored approximate curvature, 2021. A and G are
    those of the last batch whose turn it was, without running averages: for n rows and a side of d > n an n × n matrix
    is factorised in the place of the d × d one (see :mod:`kftune.optim.preconditioning.gram_sides`). The update is
    K-FAC's with ``factor_decay=0`` and statistics as rare as inversions. All parameters outside ``nn.Linear`` and
    ``nn.Conv2d``, and layers not seen by any statistics update yet, are updated by SGD with the same learning rate,
    momentum and weight decay. The loss must be a mean over examples.

    ``step(closure)`` of a batch smaller than a layer preconditions the two factors of that layer's gradient and leaves
    its ``.grad`` None; ``accumulate(closure)`` followed by ``step()`` always fills ``.grad``, for whoever clips it.

    Args:
        model: the network.
        lr: learning rate η.
        damping: λ, in units of the curvature of the per-example loss.
        damping_method: ``factored`` (λ_A = π√λ, λ_G = √λ/π) or ``plain`` (both λ); see
            :mod:`kftune.optim.preconditioning.damping`.
        fisher: ``mc`` (a label drawn from the model per example), ``exact`` (one pass per output), ``empirical`` (the
            training labels, no pass of its own) or ``permuted`` (the batch's predictions, dealt out at random).
        inverses_every: updates between two batches whose A and G are used.
        warmup_updates: the period grows with the number k of updates done, as 1 + k // ``warmup_updates``, until it is
            what the argument says. 0 for no warm-up.
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
        weight_sharing: positions of sequences and images: ``reduce`` has one row for an example (the paper reduces a
            convolution's positions too), ``expand`` one for every position; see
            :data:`kftune.optim.curvature.statistics.WeightSharing`.
        likelihood: the model's predictive distribution.
        seed: of the drawn labels.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    _statistics: RowStatistics

    layer_shapes: ClassVar[dict[str, str]] = {
        "input_inverse": "AA",
        "input_cholesky": "AA",
        "input_rows": "nA",
        "input_solved": "nA",
        "input_gram_cholesky": "nn",
        "input_damping": "",
        "gradient_inverse": "GG",
        "gradient_cholesky": "GG",
        "gradient_rows": "nG",
        "gradient_solved": "nG",
        "gradient_gram_cholesky": "nn",
        "gradient_damping": "",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        damping: float = 1e-2,
        damping_method: RowDampingMethod = "factored",
        fisher: Fisher = "mc",
        inverses_every: int = 10,
        warmup_updates: int = 10,
        warmup_schedule: Warmup = "growing",
        kl_clip: float | None = 1e-3,
        clip_fallback: bool = False,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        damped_weight_decay: bool = True,
        weight_sharing: WeightSharing = "reduce",
        likelihood: Likelihood,
        seed: int = 0,
    ) -> None:
        check_choice("damping_method", damping_method, ROW_DAMPING_METHODS)
        check_count("inverses_every", inverses_every)
        super().__init__(
            model,
            lr=lr,
            damping=damping,
            fisher=fisher,
            factor_decay=0.0,
            statistics_every=inverses_every,
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
        )
        self._damping_method: RowDampingMethod = damping_method

    @property
    def _once(self) -> bool:
        """Whether an inverse is used for a single update."""
        return self._inverses_every == 1

    def _new_statistics(self) -> RowStatistics:
        return RowStatistics(self._layers.values(), self._weight_sharing)

    def _begin(self) -> None:
        super()._begin()
        self._renewed: set[str] = set()

    def _close_statistics(self) -> None:
        """Rows are checked as they are used, in :meth:`_invert`."""

    def _average_statistics(self, decay: Decay) -> None:
        """There is nothing to average: :meth:`_invert` takes the batch's rows."""
        self._check_gathered()

    def _invert(self) -> None:
        inputs, gradients = self._statistics.input_samples(), self._statistics.gradient_samples()
        used = [name for name in inputs if name in gradients]
        damping = self._dampings()
        samples: list[Sample] = [own for name in used for own in (inputs[name], gradients[name])]
        matrices = [reduced(sample, once=self._once) for sample in samples]
        means = [matrix.diagonal().sum() / sample.d for sample, (matrix, _) in zip(samples, matrices, strict=True)]
        dampings = [
            part
            for name, mean_A, mean_G in zip(used, means[::2], means[1::2], strict=True)
            for part in split_by_means(mean_A, mean_G, damping[name], self._damping_method)
        ]
        names = [f"{side} covariance of layer {name!r}" for name in used for side in ("input", "gradient")]
        sides = make_sides(names, samples, matrices, dampings, once=self._once)
        self._renewed = set(used)
        for name, of_A, of_G in zip(used, sides[::2], sides[1::2], strict=True):
            self._layer_state[name] = _prefixed("input", of_A) | _prefixed("gradient", of_G)

    def _is_inverted(self, name: str) -> bool:
        return bool(self._layer_state[name])

    def _factors_are_cheaper(self, layer: Layer, n_rows: int) -> bool:
        d_A, d_G = layer.d_A, layer.d_G
        on_A, on_G = (flops_of_a_row(n_rows, d, once=self._once) for d in (d_A, d_G))
        extra = 0.0 if self._kl_clip is None else product_flops(n_rows, d_A, d_G)
        return n_rows * (on_A + on_G) + extra < d_G * on_A + d_A * on_G

    def _precondition(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[str, Preconditioned]:
        found: dict[str, Preconditioned] = {}
        for name in self._layers_with_gradient():
            if name in self._gradient_rows:
                found[name] = self._precondition_rows(name, self._gradient_rows[name])
            elif self._is_inverted(name):
                half = apply(self._layers[name].join(gradients), self._side(name, "input"))
                found[name] = Preconditioned(apply(half.T, self._side(name, "gradient")).T)
        return found

    def _precondition_rows(self, name: str, rows: Rows) -> Preconditioned:
        """P = (1/N)XᵀY, X = EG⁻¹ and Y = ĀA⁻¹, where A may be made of these very Ā, and G of these E."""
        inputs, gradients = flat(rows)
        renewed = name in self._renewed and rows.inputs.shape[1] == 1
        Y = apply(inputs, self._side(name, "input"), own=renewed)
        X = apply(gradients, self._side(name, "gradient"), own=renewed and self._fisher == "empirical")
        P = product(X.T, Y / len(rows.inputs))
        return Preconditioned(P, None if self._kl_clip is None else inner_product(rows, Y, X, P))

    def _side(self, name: str, side: Literal["input", "gradient"]) -> Side:
        prefix = f"{side}_"
        state = self._layer_state[name]
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _prefixed(side: str, tensors: Side) -> dict[str, Tensor]:
    return {f"{side}_{key}": tensor for key, tensor in tensors.items()}


_INVALID: tuple[tuple[dict[str, Any], str], ...] = (
    ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
    ({"damping": 0.0}, "damping must be in (0, inf), got 0.0"),
    ({"damping_method": "exact"}, "damping_method must be one of factored, plain, got 'exact'"),
    ({"fisher": "true"}, "fisher must be one of mc, exact, empirical, permuted, got 'true'"),
    ({"inverses_every": 0}, "inverses_every must be a whole number of at least 1, got 0"),
    ({"kl_clip": 0.0}, "kl_clip must be in (0, inf), got 0.0"),
    ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
    ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
    ({"weight_sharing": "both"}, "weight_sharing must be one of expand, reduce, got 'both'"),
    ({"likelihood": "poisson"}, "likelihood must be one of categorical, gaussian, bernoulli, got 'poisson'"),
)

ENTRIES = (
    OptimizerEntry(
        name="skfac",
        cls=SKFAC,
        summary="K-FAC of the last batch alone, inverted by the batch's own rows",
        paper="Tang et al.: SKFAC: training neural networks with faster Kronecker-factored approximate curvature, 2021",
        space=Space(
            {
                "lr": Float(low=1e-3, high=3.0, log=True),
                "damping": Float(low=1e-3, high=10.0, log=True, relative_to="lr"),
                "kl_clip": Float(low=1e-4, high=1e-1, log=True),
                "momentum": Float(low=0.0, high=0.98, log=True, complement=True),
                "batch_size": Int(low=32, high=1024, log=True),
            },
            {"inverses_every": 10},
        ),
        second_order=True,
        example={"lr": 0.1, "damping": 0.01, "inverses_every": 5},
        invalid=_INVALID,
        deterministic={"fisher": "exact"},
        kl_clip=True,
        distributed=False,
        floor=skfac_floor,
    ),
)
