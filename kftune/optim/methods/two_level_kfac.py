"""K-FAC with a coarse-space correction that couples the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from kftune.optim.checks import check_choice, check_range
from kftune.optim.costs.layerwise import kfac_floor
from kftune.optim.curvature.gathering import Use
from kftune.optim.curvature.layers import fold
from kftune.optim.curvature.likelihoods import Fisher, Likelihood
from kftune.optim.curvature.statistics import WeightSharing
from kftune.optim.curvature.thin import flat
from kftune.optim.entry import OptimizerEntry
from kftune.optim.methods.kfac import KFAC
from kftune.optim.preconditioning.coarse import (
    COARSE_MEANS,
    CoarseMean,
    CoarseSums,
    Map,
    Moments,
    average,
    by_example,
    damped_inverse,
    input_sums,
    join,
    moments_of,
    output_sums,
)
from kftune.optim.preconditioning.damping import DampingMethod
from kftune.optim.preconditioning.kronecker import Preconditioned, Warmup
from kftune.optim.states import check_shape
from kftune.optim.updates.averages import Decay
from kftune.space import Float, Int, Space

CoarseDamping: TypeAlias = Literal["identity", "sizes"]
COARSE_DAMPINGS: tuple[str, ...] = get_args(CoarseDamping)


class TwoLevelKFAC(KFAC):
    """P = ω₁(F + damping)⁻¹V layer by layer, plus ω₂·c_i in every entry of layer i's, c = (F_c + λI)⁻¹(ZV).

    Tselepidis, Kohler, Orvieto: Two-level K-FAC preconditioning for deep learning, 2020. The coarse problem has one
    unknown per layer: (ZV)_i is the sum of all entries of V_i (the bias' too), and F_c = ZFZᵀ sums F over all pairs of
    parameters of layers i and j; see :mod:`kftune.optim.preconditioning.coarse`, also for layers of unlike resolution.
    F_c is made of the same examples, averages and inversion periods as A and G. Each group of a grouped convolution is
    a layer. The KL clip scales the sum of both levels.

    With ``weight_sharing="expand"``, layers of different numbers of positions are compared where their grids meet, and
    all the less coupled the more their resolutions differ: with R the rows of a layer, [S_A]_ij = Σα_iα_j/√(R_iR_j),
    for the sake of a positive semi-definite F_c, where the paper's equation 7 has a mean over the common positions
    (``coarse_mean="common_positions"``). ``"reduce"`` has one position per layer and couples all.

    The logits' gradient p − e of a softmax adds up to 0, so the last layer of a classifier has no part in the coarse
    problem (c_i = 0).

    Args:
        model: the network.
        lr: learning rate η.
        damping: λ, in units of the curvature of the per-example loss.
        damping_method: of the fine level, ``factored``, ``exact`` or ``plain``; see
            :mod:`kftune.optim.preconditioning.damping`.
        fine_weight: ω₁, of K-FAC's block-diagonal solution.
        coarse_weight: ω₂, of the correction; 0 is K-FAC.
        coarse_damping: ``identity`` adds λ to the diagonal of F_c, as in the paper; ``sizes`` adds λn_i for n_i
            parameters in layer i, what λI on all parameters is on the coarse space.
        coarse_mean: of layers of unlike numbers of positions: ``own_positions`` divides the sum over their common
            positions by √(R_iR_j), R their rows; ``common_positions`` by the common ones, as the paper does. That can
            make F_c indefinite, also where grids are nested; negative eigenvalues are taken as 0.
        fisher: ``mc`` (a label drawn from the model per example), ``exact`` (one pass per output), ``empirical`` (the
            training labels, no pass of its own) or ``permuted`` (the batch's predictions, dealt out at random).
        factor_decay: weight on the old A, G, S_A and S_G, in [0, 1]; 0 uses the last statistics alone.
        statistics_every: updates between two statistics.
        inverses_every: updates between two inversions, of both levels; a multiple of ``statistics_every``.
        warmup_updates: both periods grow with the number k of updates done, as 1 + k // ``warmup_updates``, until they
            are what the arguments say. 0 for no warm-up.
        warmup_schedule: ``growing``, as said; or ``first_updates``: what is periodic is done in the first
            ``warmup_updates`` updates, and then in the k-th where k is a multiple of its period (Martens, Grosse 2015,
            algorithm 2, with 3 and 20).
        kl_clip: κ of ν = min(1, √(κ/(η²Σ|⟨P, V⟩|))), the paper's equation 10, the learning rate inside; None for no
            clip.
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
        likelihood: the model's predictive distribution.
        seed: of the drawn labels.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    needs_rows = True
    absolute_products = True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        damping: float = 1e-2,
        damping_method: DampingMethod = "factored",
        fine_weight: float = 1.0,
        coarse_weight: float = 1.0,
        coarse_damping: CoarseDamping = "identity",
        coarse_mean: CoarseMean = "own_positions",
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
        likelihood: Likelihood,
        seed: int = 0,
    ) -> None:
        check_range("fine_weight", fine_weight)
        check_range("coarse_weight", coarse_weight)
        check_choice("coarse_damping", coarse_damping, COARSE_DAMPINGS)
        check_choice("coarse_mean", coarse_mean, COARSE_MEANS)
        super().__init__(
            model,
            lr=lr,
            damping=damping,
            damping_method=damping_method,
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
        )
        self._treatment = "two-level Kronecker-factored"
        self._fine_weight, self._coarse_weight = fine_weight, coarse_weight
        self._coarse_damping = coarse_damping
        self._input_moments: Moments | None = None
        self._gradient_moments: Moments | None = None
        self._coarse_inverse: Tensor | None = None
        self._coarse_mean: CoarseMean = coarse_mean
        self._sums = self._new_sums()
        self._moments: tuple[Moments, Moments] | None = None  # of this update

    # Gathering.

    def _begin(self) -> None:
        super()._begin()
        self._sums = self._new_sums()

    def _new_sums(self) -> CoarseSums:
        return CoarseSums(list(self._layers), self._coarse_mean)

    def _take_rows(self, uses: Sequence[Use], gradients: Sequence[Tensor | None], n_examples: int) -> None:
        if not self._covariances_due():
            return
        if self._sums.n_examples < self._statistics.n_examples:  # the first output vector of this micro-batch
            self._sums.add_inputs(self._maps(uses, [use.a for use in uses], "input", n_examples), n_examples)
        self._sums.add_gradients(self._maps(uses, gradients, "gradient", n_examples))

    def _maps(
        self, uses: Sequence[Use], tensors: Sequence[Tensor | None], side: Literal["input", "gradient"], n_examples: int
    ) -> dict[str, Map]:
        """Layer → α of inputs or γ of gradients by outputs, one tensor of each use; None does not count."""
        parts: dict[str, list[Map]] = {}
        for use, tensor in zip(uses, tensors, strict=True):
            if tensor is None:
                continue
            for layer in self._gatherer.of_module[use.module]:
                own_tensor = layer.examples_first(tensor.detach(), n_examples)
                sums, positions = (input_sums if side == "input" else output_sums)(layer, own_tensor), use.positions
                if self._weight_sharing == "reduce":
                    sums = fold(sums[..., None], n_examples, layer.name)[..., 0]
                    sums = (torch.mean if side == "input" else torch.sum)(sums, dim=1, keepdim=True)
                    positions = ()
                own = by_example(layer.name, sums, positions, n_examples)
                parts.setdefault(layer.name, []).append(own)
        return {name: join(own) for name, own in parts.items()}

    def _close_statistics(self) -> None:
        super()._close_statistics()
        self._moments = self._sums.moments()
        if self._moments is not None:
            own = {side: moments.values for side, moments in zip(("input", "gradient"), self._moments, strict=True)}
            for side, values in self._mean_over_processes(own).items():
                self._suspects[f"the coarse matrix of {side} sums"] = values.sum().view(1)

    # The update.

    def _average_statistics(self, decay: Decay) -> None:
        super()._average_statistics(decay)
        moments, self._moments = self._moments, None
        if moments is not None:
            self._input_moments = average(self._input_moments, moments[0], self._factor_decay)
            self._gradient_moments = average(self._gradient_moments, moments[1], self._factor_decay)

    def _invert(self) -> None:
        super()._invert()
        if self._input_moments is None or self._gradient_moments is None:
            return
        fisher = self._input_moments.values * self._gradient_moments.values
        dampings = self._dampings()
        sizes = [1 if self._coarse_damping == "identity" else layer.d_A * layer.d_G for layer in self._layers.values()]
        damping = [size * dampings[name] for name, size in zip(self._layers, sizes, strict=True)]
        self._coarse_inverse = damped_inverse(fisher, fisher.new_tensor(damping))

    def _precondition(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[str, Preconditioned]:
        found = super()._precondition(gradients)
        if self._coarse_inverse is None:
            return found
        totals = {name: self._total(name, gradients) for name in found}
        corrections = self._corrections(self._coarse_inverse, totals)
        fine, coarse = self._fine_weight, self._coarse_weight
        for name, (P, product) in found.items():
            P.mul_(fine).add_(corrections[name], alpha=coarse)
            if product is not None:
                found[name] = Preconditioned(P, fine * product + coarse * corrections[name] * totals[name])
        return found

    def _total(self, name: str, gradients: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """(ZV)_i, the sum of all entries of a layer's V, also where there are only its factors."""
        if name in self._gradient_rows:
            inputs, own = flat(self._gradient_rows[name])
            return inputs.sum(dim=1) @ own.sum(dim=1) / len(self._gradient_rows[name].inputs)
        layer = self._layers[name]
        return torch.stack([gradients[p][layer.outputs].sum(dtype=layer.dtype) for p in layer.parameters]).sum()

    def _corrections(self, inverse: Tensor, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Layer → c_i; layers without gradient count as V = 0."""
        zero = inverse.new_zeros(())
        right = torch.stack([totals[name].to(zero) if name in totals else zero for name in self._layers])
        solution = dict(zip(self._layers, (inverse @ right).unbind(), strict=True))
        return {name: solution[name].to(total) for name, total in totals.items()}

    # State.

    def _extra_state(self) -> dict[str, Any]:
        coarse = {"inputs": self._input_moments, "gradients": self._gradient_moments}
        return super()._extra_state() | {
            "coarse_moments": {key: None if own is None else own._asdict() for key, own in coarse.items()},
            "coarse_inverse": self._coarse_inverse,
        }

    def _check_extra_state(self, extra: dict[str, Any]) -> None:
        super()._check_extra_state(extra)
        n = len(self._layers)
        for side, own in extra["coarse_moments"].items():
            for part, tensor in (own or {}).items():
                check_shape(f"coarse {part} of {side}", tensor.shape, (n, n))
        if extra["coarse_inverse"] is not None:
            check_shape("coarse inverse", extra["coarse_inverse"].shape, (n, n))

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        super()._load_extra_state(extra)
        place = {
            name: i for i, name in enumerate(extra["layers"])
        }  # of a layer's row; the model's order may be another
        order = [place[name] for name in self._layers]
        device = next(iter(self._layers.values())).weight.device if self._layers else None

        def own_order(matrix: Tensor) -> Tensor:
            return matrix[order][:, order].to(device)

        loaded = {
            key: None
            if own is None
            else moments_of({part: own_order(tensor) for part, tensor in own.items()}, extra["n_statistics"], device)
            for key, own in extra["coarse_moments"].items()
        }
        self._input_moments, self._gradient_moments = loaded["inputs"], loaded["gradients"]
        inverse = extra["coarse_inverse"]
        self._coarse_inverse = None if inverse is None else own_order(inverse)


ENTRIES = (
    OptimizerEntry(
        name="two_level_kfac",
        cls=TwoLevelKFAC,
        summary="K-FAC with a coarse-space correction: one unknown per layer couples all layers",
        paper="Tselepidis, Kohler, Orvieto: Two-level K-FAC preconditioning for deep learning, 2020",
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
            ({"damping_method": "tikhonov"}, "damping_method must be one of factored, exact, plain, got 'tikhonov'"),
            ({"fine_weight": -1.0}, "fine_weight must be in [0, inf), got -1.0"),
            ({"coarse_weight": -0.5}, "coarse_weight must be in [0, inf), got -0.5"),
            ({"coarse_damping": "none"}, "coarse_damping must be one of identity, sizes, got 'none'"),
            ({"coarse_mean": "paper"}, "coarse_mean must be one of own_positions, common_positions, got 'paper'"),
            ({"fisher": "true"}, "fisher must be one of mc, exact, empirical, permuted, got 'true'"),
            ({"statistics_every": 10, "inverses_every": 15}, "inverses_every must be a multiple of statistics_every"),
            ({"kl_clip": 0.0}, "kl_clip must be in (0, inf), got 0.0"),
        ),
        deterministic={"fisher": "exact"},
        kl_clip=True,
        floor=kfac_floor,
    ),
)
