"""The exact natural gradient of a small batch's Fisher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kftune.errors import CurvatureError, DivergenceError
from kftune.optim.checks import check_count
from kftune.optim.costs.layerwise import natural_gradient_floor
from kftune.optim.curvature.example_gradients import ExampleGradients, ExampleGradientsSum, from_tensors
from kftune.optim.curvature.likelihoods import Fisher, Likelihood
from kftune.optim.curvature.rows import Rows
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import Closure
from kftune.optim.preconditioning.kronecker import KroneckerOptimizer, Preconditioned
from kftune.optim.preconditioning.woodbury import Blocks, factorize, is_rounding, solve
from kftune.space import Float, Int, Space


class NaturalGradient(KroneckerOptimizer):
    """P = (F + damping)⁻¹V over all layers together, F the Fisher of a few examples; v ← μv + νP; [W b] ← [W b] − ηv.

    Subsampled natural gradients of Benzing: Gradient descent on neurons and its link to approximate second-order
    optimization, 2022, after Ren, Goldfarb: Efficient subsampled Gauss-Newton and natural gradient methods for training
    neural networks, 2019. No approximation but the choice of the examples: by Woodbury's identity, a Cholesky factor of
    the inner products of their gradients is all that is needed. With M = C·N gradients (C = 1 but for ``exact``), a
    renewal of F takes O(M²·Σ(d_A + d_G) + M³) operations for layers without positions, an update O(N·Σ d_A·d_G + M²).

    P means the same as K-FAC's: ``lr`` = 1 is a full step, and P → V/damping for a large damping. As F has rank M at
    most, that is also how P looks in most directions, and lr/damping is what corresponds to the learning rate of SGD:
    search damping/lr, as the default space does. The loss must be a mean over examples. Parameters outside
    ``nn.Linear`` and ``nn.Conv2d`` are updated by SGD with the same learning rate, momentum and weight decay.

    Args:
        model: the network.
        lr: learning rate η.
        damping: λ, in units of the curvature of the per-example loss; a change counts from the next renewal of F.
            Where a gradient is in the span of F's examples and λ so small that P would be its rounding divided by λ,
            the update is refused (in float32 below about 1e-7 of the curvature).
        block_diagonal: take gradients of different layers for uncorrelated, so that every layer has its own system.
        fisher: ``mc`` (a label drawn from the model per example), ``exact`` (one pass per output), ``empirical`` (the
            training labels, no pass of its own) or ``permuted`` (the batch's predictions, dealt out at random).
        fisher_examples: F is made of the first so many examples of an update's batch; None for all of them.
        inverses_every: updates between two renewals of F. What it is made of is kept meanwhile, and saved.
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
        likelihood: the model's predictive distribution.
        seed: of the drawn labels.

    Raises:
        ValueError: an invalid hyperparameter.
        CurvatureError: from a step, before parameters change: the damping is too small for the numbers' precision.
    """

    needs_rows = True
    layer_shapes: ClassVar[dict[str, str]] = {
        "matrices": "nnGA",
        "inputs": "nnA",
        "gradients": "nnnG",
        "damping": "",
        "cholesky": "nn",
    }

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        damping: float = 0.1,
        block_diagonal: bool = False,
        fisher: Fisher = "mc",
        fisher_examples: int | None = None,
        inverses_every: int = 1,
        kl_clip: float | None = 1e-3,
        clip_fallback: bool = False,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        damped_weight_decay: bool = True,
        likelihood: Likelihood,
        seed: int = 0,
    ) -> None:
        check_count("inverses_every", inverses_every)
        if fisher_examples is not None:
            check_count("fisher_examples", fisher_examples)
        super().__init__(
            model,
            lr=lr,
            damping=damping,
            fisher=fisher,
            factor_decay=0.0,
            statistics_every=inverses_every,
            inverses_every=inverses_every,
            warmup_updates=0,
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
            treatment="natural gradient",
        )
        self._block_diagonal, self._fisher_examples = block_diagonal, fisher_examples
        self._gathered = self._new_gathered()
        self._cholesky: Tensor | None = None  # of all layers together
        self._lost: list[Tensor] = []  # whether solutions of this update are rounding

    # The Fisher's examples.

    def _statistics_due(self) -> bool:
        return self._inverses_due()

    def _covariances_due(self) -> bool:
        return False

    def _new_gathered(self) -> ExampleGradientsSum:
        return ExampleGradientsSum(self._fisher_examples, one_direction=self._fisher != "exact")

    def _begin(self) -> None:
        super()._begin()
        self._gathered = self._new_gathered()

    def _forward_backward(self, closure: Closure) -> tuple[Tensor, int]:
        self._gathered.begin_batch()
        return super()._forward_backward(closure)

    def _add_rows(self, rows: Mapping[str, Rows]) -> None:
        self._gathered.add(rows)

    def _renew_averages(self) -> None:
        """Nothing is averaged: new examples replace the old; a layer that the new ones did not pass has none."""
        if not self._inverses_due():
            return
        with self.phases.phase("statistics"):
            self._check_gathered()
            found, dampings = self._gathered.result(), self._dampings()
            self._layer_state = {name: {} for name in self._layers}
            for name, examples in found.items():
                layer = self._layers[name]
                damping = layer.weight.new_full((), dampings[name], dtype=layer.dtype)
                self._layer_state[name] = examples.tensors | {"damping": damping}

    # The solve.

    def _blocks(self) -> dict[str, tuple[ExampleGradients, Tensor]]:
        return {name: (from_tensors(state), state["damping"]) for name, state in self._layer_state.items() if state}

    def _invert(self) -> None:
        blocks = self._blocks()
        if self._block_diagonal:
            names = [f"matrix of gradient products of layer {name!r}" for name in blocks]
            for name, factor in zip(
                blocks, factorize(names, [{name: block} for name, block in blocks.items()]), strict=True
            ):
                self._layer_state[name]["cholesky"] = factor
        elif blocks:
            (self._cholesky,) = factorize(["matrix of gradient products of all layers"], [blocks])

    def _is_inverted(self, name: str) -> bool:
        return "damping" in self._layer_state[name]

    def _precondition(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[str, Preconditioned]:
        blocks = self._blocks()
        self._lost = []
        V = {name: self._layers[name].join(gradients) for name in self._layers_with_gradient() if name in blocks}
        found: dict[str, Tensor] = {}
        if self._cholesky is not None:
            found = solve(blocks, self._cholesky, V)
            self._see_rounding(blocks, V, found)
        else:
            for name, own in V.items():
                block = {name: blocks[name]}
                found |= solve(block, self._layer_state[name]["cholesky"], {name: own})
                self._see_rounding(block, {name: own}, found)
        return {name: Preconditioned(P) for name, P in found.items()}

    def _see_rounding(self, system: Blocks, gradients: Mapping[str, Tensor], solutions: Mapping[str, Tensor]) -> None:
        """Have the next check refuse a solution that is nothing but rounding; the host does not wait for this."""
        if gradients:
            lost = is_rounding(system, gradients, solutions)
            self._lost.append(lost)
            nan = torch.full((), torch.nan, dtype=torch.float64, device=lost.device)
            self._suspects[f"solution {len(self._lost)}"] = torch.where(lost, nan, torch.zeros_like(nan)).view(1)

    def _check_directions(self, directions: Iterable[Tensor]) -> None:
        try:
            super()._check_directions(directions)
        except DivergenceError as error:
            if any(bool(lost) for lost in self._lost):
                dampings = ", ".join(f"{value:g}" for value in sorted(set(self._dampings().values())))
                raise CurvatureError(
                    f"the damping {dampings} is too small: all that this update's solution would be is the gradient's "
                    "rounding, divided by it; the parameters are unchanged"
                ) from error
            raise

    # State.

    def _extra_state(self) -> dict[str, Any]:
        return super()._extra_state() | {"cholesky": self._cholesky}

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        super()._load_extra_state(extra)
        factor = extra["cholesky"]
        self._cholesky = None if factor is None else factor.to(next(iter(self._layers.values())).weight.device)


ENTRIES = (
    OptimizerEntry(
        name="natural_gradient",
        cls=NaturalGradient,
        summary="Exact natural gradient of a small batch's Fisher, over all layers together, by Woodbury's identity",
        paper="Benzing: Gradient descent on neurons and its link to approximate second-order optimization, 2022",
        space=Space(
            {
                "lr": Float(low=1e-3, high=3.0, log=True),
                "damping": Float(low=1e-2, high=100.0, log=True, relative_to="lr"),
                "kl_clip": Float(low=1e-4, high=1e-1, log=True),
                "momentum": Float(low=0.0, high=0.98, log=True, complement=True),
                "batch_size": Int(low=32, high=1024, log=True),
            },
            {"inverses_every": 5, "fisher_examples": 128},
        ),
        second_order=True,
        example={"lr": 0.1, "damping": 0.1, "inverses_every": 2},
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"damping": 0.0}, "damping must be in (0, inf), got 0.0"),
            ({"fisher": "true"}, "fisher must be one of mc, exact, empirical, permuted, got 'true'"),
            ({"fisher_examples": 0}, "fisher_examples must be a whole number of at least 1, got 0"),
            ({"inverses_every": 0}, "inverses_every must be a whole number of at least 1, got 0"),
            ({"kl_clip": 0.0}, "kl_clip must be in (0, inf), got 0.0"),
            ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
            ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
            ({"likelihood": "poisson"}, "likelihood must be one of categorical, gaussian, bernoulli, got 'poisson'"),
        ),
        deterministic={"fisher": "exact"},
        kl_clip=True,
        distributed=False,
        floor=natural_gradient_floor,
    ),
)
