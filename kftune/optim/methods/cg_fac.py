"""CG-FAC: the damped Fisher of the batch, never formed, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from kftune.optim.checks import check_choice, check_count, check_range
from kftune.optim.costs.layerwise import cg_fac_floor
from kftune.optim.curvature.example_gradients import ExampleGradientsSum
from kftune.optim.curvature.kronecker_rows import KroneckerRows
from kftune.optim.curvature.likelihoods import Fisher, Likelihood
from kftune.optim.curvature.rows import Rows
from kftune.optim.curvature.statistics import WeightSharing
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import Closure
from kftune.optim.linalg.conjugate_gradients import Operator, conjugate_gradients
from kftune.optim.preconditioning.kronecker import KroneckerOptimizer, Preconditioned
from kftune.space import Categorical, Float, Int, Space

CurvatureOperator: TypeAlias = Literal["fisher", "kronecker"]
CURVATURE_OPERATORS: tuple[str, ...] = get_args(CurvatureOperator)


class CGFAC(KroneckerOptimizer):
    """P ≈ (F + damping)⁻¹V layer by layer by conjugate gradients; v ← μv + νP; [W b] ← [W b] − ηv.

    Chen: An iterative K-FAC algorithm for deep learning, 2021. F is that of the update's own batch and only ever
    multiplied with: what is kept is the rows ā and g of the layers, or what is made of them if that is smaller.
    ``operator`` says which F:

    * ``fisher``: the layer's exact block, F vec(X) = (1/N) Σ_n ⟨j_n, X⟩ j_n with j_n = Σ_t g āᵀ the gradient of an
      example, of all its positions together;
    * ``kronecker``: K-FAC's block, F vec(X) = GXA. It differs from ``fisher`` as soon as there are two examples; the
      paper, which writes them down for one, takes them for the same.

    Iterations start from the layer's previous P, scaled to fit the new system best. All layers advance together. The
    loss must be a mean over examples. Parameters outside ``nn.Linear`` and ``nn.Conv2d`` are updated by SGD with the
    same learning rate, momentum and weight decay.

    Args:
        model: the network.
        lr: learning rate η.
        damping: λ, in units of the curvature of the per-example loss.
        operator: ``fisher`` or ``kronecker``.
        cg_iterations: largest number of iterations, for each layer.
        cg_tolerance: a layer stops at ‖V − (F + λI)P‖/‖V‖ ≤ this; 0 for as many iterations as allowed.
        warm_start: False starts from zero every time.
        fisher: ``mc`` (a label drawn from the model per example), ``exact`` (one pass per output), ``empirical`` (the
            training labels, no pass of its own) or ``permuted`` (the batch's predictions, dealt out at random).
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
        weight_sharing: positions of sequences and images for ``kronecker``, as ``expand`` or ``reduce``; see
            :data:`kftune.optim.curvature.statistics.WeightSharing`. ``fisher`` needs no such approximation.
        likelihood: the model's predictive distribution.
        seed: of the drawn labels.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    needs_rows = True
    layer_shapes: ClassVar[dict[str, str]] = {"solution": "GA"}

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        damping: float = 0.1,
        operator: CurvatureOperator = "fisher",
        cg_iterations: int = 10,
        cg_tolerance: float = 1e-2,
        warm_start: bool = True,
        fisher: Fisher = "mc",
        kl_clip: float | None = 1e-3,
        clip_fallback: bool = False,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        damped_weight_decay: bool = True,
        weight_sharing: WeightSharing = "expand",
        likelihood: Likelihood,
        seed: int = 0,
    ) -> None:
        check_choice("operator", operator, CURVATURE_OPERATORS)
        check_count("cg_iterations", cg_iterations)
        check_range("cg_tolerance", cg_tolerance, high=1.0)
        super().__init__(
            model,
            lr=lr,
            damping=damping,
            fisher=fisher,
            factor_decay=0.0,
            statistics_every=1,
            inverses_every=1,
            warmup_updates=0,
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
            treatment="Fisher by conjugate gradients",
        )
        self._operator, self._warm_start = operator, warm_start
        self._cg_iterations, self._cg_tolerance = cg_iterations, cg_tolerance
        self._curvature = self._new_curvature()
        self._fisher_products: dict[str, Operator] = {}

    # The batch's curvature.

    def _statistics_due(self) -> bool:
        return True

    def _covariances_due(self) -> bool:
        return False

    def _new_curvature(self) -> ExampleGradientsSum | KroneckerRows:
        if self._operator == "fisher":
            return ExampleGradientsSum(one_direction=self._fisher != "exact")
        return KroneckerRows(self._weight_sharing)

    def _begin(self) -> None:
        super()._begin()
        self._curvature = self._new_curvature()
        self._fisher_products = {}

    def _forward_backward(self, closure: Closure) -> tuple[Tensor, int]:
        self._curvature.begin_batch()
        return super()._forward_backward(closure)

    def _add_rows(self, rows: Mapping[str, Rows]) -> None:
        self._curvature.add(rows, kept=not self._single)

    def _renew_averages(self) -> None:
        """There are none."""
        self._check_gathered()

    def _invert(self) -> None:
        """Nothing is inverted: this readies products with F."""
        self._fisher_products = {name: found.fisher_product for name, found in self._curvature.result().items()}

    def _is_inverted(self, name: str) -> bool:
        return name in self._fisher_products

    # The solve.

    def _precondition(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[str, Preconditioned]:
        names = [name for name in self._layers_with_gradient() if self._is_inverted(name)]
        if not names:
            return {}
        dampings = self._dampings()
        solutions = conjugate_gradients(
            names,
            [_damped(self._fisher_products[name], dampings[name]) for name in names],
            [self._layers[name].join(gradients) for name in names],
            [self._layer_state[name].get("solution") for name in names],
            iterations=self._cg_iterations,
            tolerance=self._cg_tolerance,
        )
        if self._warm_start:
            for name, X in zip(names, solutions.X, strict=True):
                self._layer_state[name]["solution"] = X.clone()  # P will be scaled in place
        return {name: Preconditioned(X) for name, X in zip(names, solutions.X, strict=True)}


def _damped(product: Callable[[Tensor], Tensor], damping: float) -> Operator:
    """X → FX + λX."""
    return lambda X: torch.add(product(X), X, alpha=damping)


ENTRIES = (
    OptimizerEntry(
        name="cg_fac",
        cls=CGFAC,
        summary="The batch's damped Fisher, layer by layer, by conjugate gradients without forming a matrix",
        paper="Chen: An iterative K-FAC algorithm for deep learning, 2021",
        space=Space(
            {
                "lr": Float(low=1e-3, high=3.0, log=True),
                "damping": Float(low=1e-2, high=100.0, log=True, relative_to="lr"),
                "operator": Categorical(choices=("fisher", "kronecker")),
                "cg_iterations": Int(low=3, high=30, log=True),
                "kl_clip": Float(low=1e-4, high=1e-1, log=True),
                "momentum": Float(low=0.0, high=0.98, log=True, complement=True),
                "batch_size": Int(low=32, high=1024, log=True),
            },
        ),
        second_order=True,
        example={"lr": 0.1, "damping": 0.1, "cg_iterations": 10},
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"damping": 0.0}, "damping must be in (0, inf), got 0.0"),
            ({"operator": "hessian"}, "operator must be one of fisher, kronecker, got 'hessian'"),
            ({"cg_iterations": 0}, "cg_iterations must be a whole number of at least 1, got 0"),
            ({"cg_tolerance": 1.0}, "cg_tolerance must be in [0, 1), got 1.0"),
            ({"fisher": "true"}, "fisher must be one of mc, exact, empirical, permuted, got 'true'"),
            ({"kl_clip": 0.0}, "kl_clip must be in (0, inf), got 0.0"),
            ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
            ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
            ({"weight_sharing": "both"}, "weight_sharing must be one of expand, reduce, got 'both'"),
            ({"likelihood": "poisson"}, "likelihood must be one of categorical, gaussian, bernoulli, got 'poisson'"),
        ),
        deterministic={"fisher": "exact"},
        kl_clip=True,
        distributed=False,
        floor=cg_fac_floor,
    ),
)
