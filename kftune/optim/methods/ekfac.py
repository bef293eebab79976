"""EKFAC: K-FAC with its eigenvalues replaced by the gradients' second moments in its eigenbasis."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from kftune.optim.checks import check_choice, check_count
from kftune.optim.costs.layerwise import ekfac_floor
from kftune.optim.curvature.layers import Layer
from kftune.optim.curvature.likelihoods import Fisher, Likelihood
from kftune.optim.curvature.rows import Rows
from kftune.optim.curvature.statistics import WeightSharing
from kftune.optim.curvature.thin import flat
from kftune.optim.entry import OptimizerEntry
from kftune.optim.linalg.decompositions import eigendecompositions
from kftune.optim.linalg.eigenspaces import Span, equal_spans, share_
from kftune.optim.linalg.products import padded_zeros
from kftune.optim.preconditioning.eigenbasis import (
    Basis,
    add_second_moments,
    moved,
    rotated_gradient,
    rotated_gradient_of_rows,
    solve,
)
from kftune.optim.preconditioning.kronecker import KroneckerOptimizer, Preconditioned, Warmup
from kftune.optim.updates.averages import decay_of
from kftune.space import Float, Int, Space

BasisChange: TypeAlias = Literal["move", "reset"]
BASIS_CHANGES: tuple[str, ...] = get_args(BasisChange)


class EKFAC(KroneckerOptimizer):
    """P = U_G[(U_GᵀVU_A) ⊘ (S + λ)]U_Aᵀ layer by layer; v ← μv + νP; [W b] ← [W b] − ηv.

    George, Laurent, Bouthillier, Ballas, Vincent: Fast approximate natural gradient descent in a Kronecker-factored
    eigenbasis, 2018, algorithm 1 with running averages ("EKFAC-ra"). U_A and U_G are eigenvectors of K-FAC's running
    averages A and G; S is the running average of the squared entries of U_GᵀV_nU_A, V_n the gradient of one example
    for the labels of ``fisher`` (summed over positions before it is squared; for ``exact``, squares are summed over the
    outputs). K-FAC with ``damping_method="exact"`` has e_G e_Aᵀ in the place of S.

    An update that renews the basis gathers A, G and S from the same batch, in this order: until it ends it keeps the
    layers' inputs and output gradients. Averages have the weight min(1 − 1/k, factor_decay) on the old value the k-th
    time. Where A or G has a null space, or other eigenvalues that are equal up to rounding, its eigenvectors there are
    arbitrary: they share one scaling, the mean, so that the update depends on the data alone.

    All parameters outside ``nn.Linear`` and ``nn.Conv2d``, and layers not seen when a basis was made, are updated by
    SGD with the same learning rate, momentum and weight decay. The loss must be a mean over examples.

    ``step(closure)`` of a batch smaller than a layer preconditions the two factors of that layer's gradient and leaves
    its ``.grad`` None; ``accumulate(closure)`` followed by ``step()`` always fills ``.grad``, for whoever clips it.

    Args:
        model: the network.
        lr: learning rate η.
        damping: λ, in units of the curvature of the per-example loss.
        fisher: ``mc`` (a label drawn from the model per example), ``exact`` (one pass per output), ``empirical`` (the
            training labels, no pass of its own) or ``permuted`` (the batch's predictions, dealt out at random).
        factor_decay: weight on the old A, G and S, in [0, 1]; 0 uses the last statistics alone.
        statistics_every: updates between two gatherings of A and G.
        scalings_every: updates between two gatherings of S.
        inverses_every: updates between two bases; a multiple of ``statistics_every``.
        basis_change: what S becomes in a new basis, before the batch's own is averaged in. ``move``: the diagonal there
            of the old approximation, S being its diagonal in the old basis. ``reset``: K-FAC's e_G e_Aᵀ, as in the
            authors' program; with a short ``inverses_every`` this stays close to K-FAC.
        warmup_updates: all periods grow with the number k of updates done, as 1 + k // ``warmup_updates``, until they
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
        weight_sharing: positions of sequences and images in A and G, and so in the basis, as ``expand`` or ``reduce``;
            see :data:`kftune.optim.curvature.statistics.WeightSharing`. S is the same second moment with either.
        likelihood: the model's predictive distribution.
        seed: of the drawn labels.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    needs_rows = True
    distributed = True
    layer_shapes: ClassVar[dict[str, str]] = {
        **KroneckerOptimizer.layer_shapes,
        "input_vectors": "AA",
        "gradient_vectors": "GG",
        "scalings": "GA",
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
        scalings_every: int = 10,
        inverses_every: int = 100,
        basis_change: BasisChange = "move",
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
        check_count("scalings_every", scalings_every)
        check_choice("basis_change", basis_change, BASIS_CHANGES)
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
            treatment="Kronecker-factored eigenbasis",
        )
        self._scalings_every = scalings_every
        self._basis_change = basis_change
        self._last_scalings: int | None = None
        self._n_scalings = 0
        self._shared: dict[str, tuple[list[Span], list[Span]]] = {}  # layer → spans of G's and of A's eigenvectors

    # When.

    def _statistics_due(self) -> bool:
        return self._covariances_due() or self._scalings_due()

    def _scalings_due(self) -> bool:
        return self._inverses_due() or self._due(self._scalings_every, self._last_scalings)

    # What is gathered.

    def _begin(self) -> None:
        super()._begin()
        self._second_moments: dict[str, Tensor] = {}
        self._kept: list[Mapping[str, Rows]] = []

    def _add_rows(self, rows: Mapping[str, Rows]) -> None:
        if not self._scalings_due():
            return
        if not self._inverses_due():
            self._add_second_moments(rows)
        elif self._single:
            self._kept.append(rows)
        else:  # the caller may write the next micro-batch into the same memory
            self._kept.append({name: _cloned(own) for name, own in rows.items()})

    def _add_second_moments(self, rows: Mapping[str, Rows]) -> None:
        for name in rows:
            if self._is_inverted(name):
                if name not in self._second_moments:
                    S = self._layer_state[name]["scalings"]
                    self._second_moments[name] = padded_zeros(*S.shape, like=S)
                add_second_moments(self._second_moments[name], rows[name], self._basis(name))

    def _close_statistics(self) -> None:
        super()._close_statistics()
        if self._scalings_due() and not self._kept:
            self._close_second_moments()

    def _close_second_moments(self) -> None:
        if self._second_moments:
            torch._foreach_div_(list(self._second_moments.values()), float(self._statistics.n_examples))
        self._suspect("second moments", self._mean_over_processes(self._second_moments))

    # What is done with it.

    def _renew(self) -> None:
        scalings = self._scalings_due()
        super()._renew()
        if scalings:
            with self.phases.phase("statistics"):
                self._average_scalings()
            self._last_scalings = self._n_updates

    def _invert(self) -> None:
        factors = self._factors()
        names = [f"{side} covariance of layer {name!r}" for name in factors for side in ("input", "gradient")]
        found = eigendecompositions(names, [matrix for pair in factors.values() for matrix in pair])
        shared, counts = dict(self._shared), dict(self._n_averaged.get("scalings", {}))
        for name, A, G in zip(factors, found[::2], found[1::2], strict=True):
            state, basis = self._layer_state[name], Basis(A.vectors, G.vectors)
            if not self._is_inverted(name):
                counts[name] = 0  # what S is to begin with is no second moment
            if self._basis_change == "move" and self._is_inverted(name):
                state["scalings"] = moved(state["scalings"], self._basis(name), basis)
            else:
                state["scalings"] = torch.outer(G.values, A.values)
            state.update(basis._asdict())
            shared[name] = equal_spans(G.values), equal_spans(A.values)
            share_(state["scalings"], *shared[name])
        self._shared = shared
        self._n_averaged = self._n_averaged | {"scalings": counts}

    def _average_scalings(self) -> None:
        """S ← decay·S + (1 − decay)·S_batch"""
        if self._kept:  # rows that had to wait for this update's basis
            for rows in self._kept:
                self._add_second_moments(rows)
            self._close_second_moments()
        moments, self._second_moments, self._kept = self._second_moments, {}, []
        self._check_gathered()
        self._n_scalings += 1
        for name, own in moments.items():
            share_(own, *self._shared.get(name, ((), ())))
        self._average("scalings", moments, partial(decay_of, factor_decay=self._factor_decay), self._n_scalings)

    # How the gradient is preconditioned.

    def _is_inverted(self, name: str) -> bool:
        return "scalings" in self._layer_state[name]

    def _basis(self, name: str) -> Basis:
        state = self._layer_state[name]
        return Basis(state["input_vectors"], state["gradient_vectors"])

    def _factors_are_cheaper(self, layer: Layer, n_rows: int) -> bool:
        d_A, d_G = layer.d_A, layer.d_G
        return n_rows * (d_A**2 + d_G**2) < d_A * d_G * (d_A + d_G)

    def _precondition(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[str, Preconditioned]:
        dampings = self._dampings()
        found: dict[str, Preconditioned] = {}
        for name in self._layers_with_gradient():
            if self._is_inverted(name):
                basis, S = self._basis(name), self._layer_state[name]["scalings"]
                found[name] = Preconditioned(*solve(self._rotated(name, basis, gradients), S, dampings[name], basis))
        return found

    def _rotated(self, name: str, basis: Basis, gradients: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """U_GᵀVU_A"""
        if name in self._gradient_rows:
            rows = self._gradient_rows[name]
            return rotated_gradient_of_rows(*flat(rows), len(rows.inputs), basis)
        return rotated_gradient(self._layers[name].join(gradients), basis)

    # State.

    def _extra_state(self) -> dict[str, Any]:
        return super()._extra_state() | {
            "last_scalings": self._last_scalings,
            "n_scalings": self._n_scalings,
            "shared_scalings": self._shared,
        }

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        super()._load_extra_state(extra)
        self._last_scalings, self._n_scalings = extra["last_scalings"], extra["n_scalings"]
        self._shared = extra.get("shared_scalings", {})  # states of before have none until their next basis


def _cloned(rows: Rows) -> Rows:
    return rows._replace(inputs=rows.inputs.clone(), gradients=rows.gradients.clone())


ENTRIES = (
    OptimizerEntry(
        name="ekfac",
        cls=EKFAC,
        summary="K-FAC with second moments of the gradient in its eigenbasis for eigenvalues",
        paper="George et al.: Fast approximate natural gradient descent in a Kronecker-factored eigenbasis, 2018",
        space=Space(
            {
                "lr": Float(low=1e-3, high=3.0, log=True),
                "damping": Float(low=1e-3, high=10.0, log=True, relative_to="lr"),
                "kl_clip": Float(low=1e-4, high=1e-1, log=True),
                "momentum": Float(low=0.0, high=0.98, log=True, complement=True),
                "batch_size": Int(low=32, high=1024, log=True),
            },
            # A basis costs ten times what a Cholesky factor does; S makes up for its age.
            {"statistics_every": 5, "scalings_every": 5, "inverses_every": 50},
        ),
        second_order=True,
        example={"lr": 0.1, "damping": 0.01, "statistics_every": 1, "scalings_every": 1, "inverses_every": 5},
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"damping": 0.0}, "damping must be in (0, inf), got 0.0"),
            ({"fisher": "true"}, "fisher must be one of mc, exact, empirical, permuted, got 'true'"),
            ({"factor_decay": 1.1}, "factor_decay must be in [0, 1], got 1.1"),
            ({"scalings_every": 0}, "scalings_every must be a whole number of at least 1, got 0"),
            ({"statistics_every": 10, "inverses_every": 15}, "inverses_every must be a multiple of statistics_every"),
            ({"basis_change": "restart"}, "basis_change must be one of move, reset, got 'restart'"),
            ({"kl_clip": 0.0}, "kl_clip must be in (0, inf), got 0.0"),
            ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
            ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
            ({"weight_sharing": "both"}, "weight_sharing must be one of expand, reduce, got 'both'"),
            ({"likelihood": "poisson"}, "likelihood must be one of categorical, gaussian, bernoulli, got 'poisson'"),
        ),
        deterministic={"fisher": "exact"},
        kl_clip=True,
        floor=ekfac_floor,
    ),
)
