"""FOOF: gradient descent on neurons."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from kftune.optim.checks import check_choice, check_count, check_periods
from kftune.optim.costs.layerwise import foof_floor
from kftune.optim.curvature.layers import Layer
from kftune.optim.curvature.likelihoods import FISHERS, Fisher, Likelihood
from kftune.optim.curvature.statistics import WeightSharing
from kftune.optim.curvature.thin import flat
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import Closure
from kftune.optim.linalg.decompositions import damped_inverses
from kftune.optim.linalg.products import product
from kftune.optim.preconditioning.damping import PRECONDITIONER_SHAPES, make_preconditioners, split_damping
from kftune.optim.preconditioning.momentum import MomentumOptimizer
from kftune.optim.updates.averages import debiased_decay_of
from kftune.optim.updates.momentum import decayed_gradients
from kftune.space import Float, Int, Space

Variant: TypeAlias = Literal["foof", "kfac_damping", "kfac_norm"]
VARIANTS: tuple[str, ...] = get_args(Variant)
Order: TypeAlias = Literal["statistics_first", "step_first"]
ORDERS: tuple[str, ...] = get_args(Order)


class FOOF(MomentumOptimizer):
    """P = damping·V(A + damping·I)⁻¹ layer by layer; v ← μv + P; [W b] ← [W b] − lr·v.

    Benzing: Gradient descent on neurons and its link to approximate second-order optimization, 2022, with its learning
    rate written as η = lr·damping: P → V for a large damping, so that ``lr`` keeps its meaning (the paper's
    (η, λ) = (30, 100) is lr = 0.3). A is a normalised running average over statistics updates; only layer inputs are
    needed, no labels and no extra pass. Everything outside linear layers and convolutions is updated by SGD with the
    same learning rate, momentum and weight decay, as are layers that no statistics have seen.

    Two variants show what of K-FAC is FOOF (section 4 of the paper). Both damp A as K-FAC does, by λ_A = π√λ with
    π² = (tr A/d_A)/(tr G/d_G), so they need G, and have K-FAC's scale of ``lr``: ``kfac_damping`` is K-FAC where G is
    negligible beside its damping, P = (λ_A/λ)·V(A + λ_A·I)⁻¹ (its figure 3); ``kfac_norm`` gives V(A + λ_A·I)⁻¹ the
    norm, layer by layer, of K-FAC's P = (G + λ/λ_A·I)⁻¹V(A + λ_A·I)⁻¹ (its figure 4C).

    The paper's algorithm 1 takes the parts of an update in the order step, inversion, statistics. That is
    ``order="step_first"``. The default is K-FAC's order: its inverse is in use one update earlier than the paper's and
    has seen one batch more, the one whose gradient it preconditions first.

    Args:
        model: the network.
        lr: scale-free learning rate η/λ.
        damping: λ, in units of A = mean āāᵀ; for the variants in units of the curvature, as K-FAC's. A change counts
            from the next inversion.
        variant: ``foof``, ``kfac_damping`` or ``kfac_norm``.
        fisher: whose output gradients make G, for the variants only: ``mc``, ``exact``, ``empirical``, ``permuted``.
        factor_decay: m, weight on the old A, in [0, 1].
        inverses_every: T, updates between two inversions; a multiple of ``statistics_every``.
        statistics_every: updates between two statistics.
        statistics_window: S, only in the last S updates up to and including each inverting one are statistics
            gathered; None for all of them. With ``order="step_first"`` in the S updates before each inverting one,
            where S must be at least ``statistics_every``.
        initial_statistics: the first so many steps gather statistics only and leave the parameters as they are
            (50 in the paper).
        order: ``statistics_first``: the batch goes into A, A is inverted where that is due, and the batch's gradient is
            preconditioned. ``step_first``, the paper's: the gradient is preconditioned with the inverse that there is,
            then A is inverted where that is due, then the batch goes into A. Before the first inverse P = V, which
            A = 0 gives; ``initial_statistics`` are inverted before the first step.
        momentum: μ, in [0, 1).
        nesterov: θ ← θ − lr·(P + μv) instead.
        weight_decay: ℓ2 coefficient, added to the gradient before it is preconditioned.
        decoupled_weight_decay: θ ← (1 − lr·weight_decay)θ before the update instead, outside preconditioner and
            momentum.
        damped_weight_decay: for the variants only, whose λ damps the curvature: whether it is λ + weight_decay,
            the objective's whole diagonal, as K-FAC's.
        weight_sharing: positions of sequences and images, as ``expand`` or ``reduce``; see
            :data:`kftune.optim.curvature.statistics.WeightSharing`.
        likelihood: the model's predictive distribution; only used for G.
        seed: of the drawn labels; only used for G.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    distributed = True
    layer_shapes: ClassVar[dict[str, str]] = {**MomentumOptimizer.layer_shapes, **PRECONDITIONER_SHAPES, "scale": ""}

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        damping: float = 0.1,
        variant: Variant = "foof",
        fisher: Fisher = "mc",
        factor_decay: float = 0.95,
        inverses_every: int = 10,
        statistics_every: int = 1,
        statistics_window: int | None = None,
        initial_statistics: int = 0,
        order: Order = "statistics_first",
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        damped_weight_decay: bool = True,
        weight_sharing: WeightSharing = "expand",
        likelihood: Likelihood = "gaussian",
        seed: int = 0,
    ) -> None:
        check_choice("variant", variant, VARIANTS)
        check_choice("fisher", fisher, FISHERS)
        check_periods(statistics_every, inverses_every)
        if statistics_window is not None:
            check_count("statistics_window", statistics_window)
        check_count("initial_statistics", initial_statistics, low=0)
        check_choice("order", order, ORDERS)
        if order == "step_first" and statistics_window is not None and statistics_window < statistics_every:
            raise ValueError(
                "statistics_window must be at least statistics_every with order='step_first', "
                f"got {statistics_window} and {statistics_every}: no statistics would be gathered"
            )
        super().__init__(
            model,
            lr=lr,
            damping=damping,
            factor_decay=factor_decay,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            damped_weight_decay=damped_weight_decay and variant != "foof",
            likelihood=likelihood,
            fisher=None if variant == "foof" else fisher,
            weight_sharing=weight_sharing,
            seed=seed,
            treatment="FOOF",
        )
        self._variant = variant
        self._inverses_every, self._statistics_every = inverses_every, statistics_every
        self._statistics_window = statistics_window
        self._initial_statistics = initial_statistics
        self._step_first = order == "step_first"

    @property
    def _gathering_only(self) -> bool:
        """Whether this step is one of the first that leave the parameters as they are."""
        return self._n_statistics < self._initial_statistics

    def _statistics_due(self) -> bool:
        if self._gathering_only:
            return True
        until_inversion = -self._n_updates % self._inverses_every
        if self._step_first:  # what an inverting update gathers is for the inversion after
            until_inversion = (until_inversion or self._inverses_every) - 1
        in_window = self._statistics_window is None or until_inversion < self._statistics_window
        return in_window and self._n_updates % self._statistics_every == 0

    def _forward_backward(self, closure: Closure) -> tuple[Tensor, int]:
        if not self._gathering_only or self._fisher is not None:
            return super()._forward_backward(closure)
        return self._gatherer.forward_only(closure, self._statistics, self.phases)

    def _update(self) -> None:
        if self._gathering_only:
            self._average_factors()
        elif self._step_first:
            self._update_step_first()
        else:
            if self._statistics_due():
                self._average_factors()
            if self._inverses_due():
                self._invert()
            self._move()

    def _update_step_first(self) -> None:
        """The parts in the paper's order."""
        if self._begins:
            self._invert()
        directions = self._checked_directions()
        if self._inverses_due() and not self._begins:
            self._invert()
        if self._statistics_due():
            self._average_factors()
        self._take(directions)

    @property
    def _begins(self) -> bool:
        """Whether this is the first update; what was gathered before it is then inverted."""
        return self._n_updates == 0

    def _average_factors(self) -> None:
        with self.phases.phase("statistics"):
            inputs, gradients = self._batch_covariances()
            self._n_statistics += 1
            decay = partial(debiased_decay_of, factor_decay=self._factor_decay)
            self._average("input_covariance", inputs, decay)
            self._average("gradient_covariance", gradients, decay)

    def _invert(self) -> None:
        with self.phases.phase("inversion"):
            self._make_inverses()

    def _make_inverses(self) -> None:
        needed = "input_covariance" if self._variant == "foof" else "gradient_covariance"
        seen = {name: state for name, state in self._layer_state.items() if needed in state}
        damping = self._dampings()
        if self._variant == "kfac_norm":
            factors = {name: (state["input_covariance"], state["gradient_covariance"]) for name, state in seen.items()}
            for name, preconditioner in make_preconditioners(factors, damping, "factored").items():
                seen[name].update(preconditioner)
            return
        dampings = []
        for name, state in seen.items():
            A = state["input_covariance"]
            if self._variant == "foof":
                dampings.append(A.new_full((), damping[name]))
                state["scale"] = dampings[-1]
            else:
                of_A, _ = split_damping(A, state["gradient_covariance"], damping[name], "factored")
                dampings.append(of_A)
                state["scale"] = of_A / damping[name]
        names = [f"input covariance of layer {name!r}" for name in seen]
        covariances = [state["input_covariance"] for state in seen.values()]
        for state, inverse in zip(seen.values(), damped_inverses(names, covariances, dampings), strict=True):
            state["input_inverse"] = inverse

    def _inverses_due(self) -> bool:
        return self._n_updates % self._inverses_every == 0

    def _will_be_inverted(self, name: str) -> bool:
        if self._gathering_only:
            return False
        state = self._layer_state[name]
        if self._step_first:  # from what there is already
            return "input_inverse" in state or (self._begins and "input_covariance" in state)
        return self._inverses_due() or "input_inverse" in state

    def _factors_are_cheaper(self, layer: Layer, n_rows: int) -> bool:
        return n_rows < layer.d_G and self._variant == "foof"

    def _directions(self) -> dict[nn.Parameter, Tensor]:
        """P for the layers, the gradient for the rest."""
        gradients = decayed_gradients(self)
        found: dict[str, Tensor] = {}
        for name in self._layers_with_gradient():
            state = self._layer_state[name]
            if name in self._gradient_rows:
                inputs, g = flat(self._gradient_rows[name])
                scale = self._damping_scale(name) / len(self._gradient_rows[name].inputs)
                found[name] = product(g.T, product(inputs, state["input_inverse"]).mul_(scale))
            elif "input_inverse" in state:
                P = product(self._layers[name].join(gradients), state["input_inverse"])
                found[name] = P.mul_(self._scale(P, name))
        return gradients | self._split(found)

    def _scale(self, P: Tensor, name: str) -> Tensor | float:
        """What V(A + λ_A·I)⁻¹ is multiplied with."""
        if self._variant != "kfac_norm":
            return self._damping_scale(name)
        norm = torch.linalg.vector_norm(P)
        ratio = torch.linalg.vector_norm(self._layer_state[name]["gradient_inverse"] @ P) / norm
        return torch.where(norm > 0, ratio, torch.ones_like(ratio))

    def _damping_scale(self, name: str) -> Tensor | float:
        """λ, or λ_A/λ, as it was when the layer was inverted."""
        scale = self._layer_state[name].get("scale")
        # States that were saved before the scale was kept have none.
        return self._groups()[self._layers[name].weight]["damping"] if scale is None else scale


ENTRIES = (
    OptimizerEntry(
        name="foof",
        cls=FOOF,
        summary="Fast first-order optimizer: gradient descent on neurons, preconditioned by layer inputs",
        paper="Benzing: Gradient descent on neurons and its link to approximate second-order optimization, 2022",
        space=Space(
            {
                # For a small damping the best lr grows as 1/damping: what counts there is lr·damping, the paper's η.
                "lr": Float(low=1e-2, high=100.0, log=True),
                "damping": Float(low=1e-3, high=10.0, log=True),
                "momentum": Float(low=0.0, high=0.98, log=True, complement=True),
                "batch_size": Int(low=32, high=1024, log=True),
            },
            {"statistics_every": 1, "inverses_every": 10},
        ),
        second_order=True,
        floor=foof_floor,
        example={"lr": 0.3, "damping": 0.1, "inverses_every": 5},
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"damping": 0.0}, "damping must be in (0, inf), got 0.0"),
            ({"variant": "kfac"}, "variant must be one of foof, kfac_damping, kfac_norm, got 'kfac'"),
            ({"factor_decay": -0.1}, "factor_decay must be in [0, 1], got -0.1"),
            ({"statistics_every": 3, "inverses_every": 10}, "inverses_every must be a multiple of statistics_every"),
            ({"statistics_window": 0}, "statistics_window must be a whole number of at least 1, got 0"),
            ({"order": "paper"}, "order must be one of statistics_first, step_first, got 'paper'"),
            (
                {"order": "step_first", "statistics_window": 1, "statistics_every": 5},
                "statistics_window must be at least statistics_every with order='step_first', got 1 and 5",
            ),
            ({"initial_statistics": -1}, "initial_statistics must be a whole number of at least 0, got -1"),
            ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
            ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
        ),
    ),
)
