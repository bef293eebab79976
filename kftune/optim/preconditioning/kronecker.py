"""What K-FAC and its relatives share: when statistics and inversions are due, factor averages, KL clip, momentum."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from kftune.optim.checks import check_choice, check_count, check_periods, check_range
from kftune.optim.curvature.likelihoods import FISHERS, Fisher, Likelihood
from kftune.optim.curvature.statistics import WeightSharing
from kftune.optim.preconditioning.kl_clip import kl_clip_factor, squared_norm
from kftune.optim.preconditioning.momentum import MomentumOptimizer
from kftune.optim.updates.averages import Decay, decay_of
from kftune.optim.updates.momentum import decayed_gradients

Warmup: TypeAlias = Literal["growing", "first_updates"]
WARMUPS: tuple[str, ...] = get_args(Warmup)


class Preconditioned(NamedTuple):
    """The preconditioned gradient of a layer.

    Attributes:
        P: (d_G, d_A); may be scaled in place.
        product: ⟨P, V⟩ where it is known already, or V is not at hand; a scalar.
    """

    P: Tensor
    product: Tensor | None = None


class KroneckerOptimizer(MomentumOptimizer):
    """v ← μv + νP; [W b] ← [W b] − ηv with P the gradient preconditioned by a subclass.

    A subclass implements :meth:`_invert` and :meth:`_precondition`. It may gather more than A and G
    (:meth:`_average_statistics`).

    Args:
        model: the network.
        lr: learning rate η.
        damping: λ, in units of the curvature of the per-example loss.
        fisher: ``mc`` (a label drawn from the model per example), ``exact`` (one pass per output), ``empirical`` (the
            training labels, no pass of its own) or ``permuted`` (the batch's predictions, dealt out at random).
        factor_decay: weight on the old factors, in [0, 1]; 0 uses the last statistics alone.
        statistics_every: updates between two statistics.
        inverses_every: updates between two inversions; a multiple of ``statistics_every``.
        warmup_updates: both periods grow with the number k of updates done, as 1 + k // ``warmup_updates``, until they
            are what the arguments say: at first the network changes too fast for old curvature. 0 for no warm-up.
        warmup_schedule: ``growing``, as said; or ``first_updates``: statistics and inversions in the first
            ``warmup_updates`` updates, and then in the k-th where k is a multiple of the period (Martens, Grosse 2015,
            algorithm 2).
        kl_clip: κ of ν = min(1, √(κ/(η²Σ⟨P, V⟩))), the learning rate inside; None for no clip.
        clip_fallback: whether parameters that SGD updates count in the clip, as P = V, and are shortened with the rest.
        momentum: μ, in [0, 1), applied after the clip.
        nesterov: θ ← θ − η(P + μv) instead.
        weight_decay: ℓ2 coefficient, added to the gradient before it is preconditioned.
        decoupled_weight_decay: θ ← (1 − η·weight_decay)θ before the update instead; see
            :func:`kftune.optim.updates.momentum.momentum_step`.
        damped_weight_decay: whether the ℓ2 coefficient adds to λ; see :meth:`MomentumOptimizer._dampings`.
        weight_sharing: ``expand`` or ``reduce``; see :data:`kftune.optim.curvature.statistics.WeightSharing`.
        likelihood: the model's predictive distribution.
        seed: of the drawn labels.
        treatment: what :meth:`coverage` calls the layer-wise rule.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    absolute_products: ClassVar[bool] = False
    """Whether the KL clip adds up |⟨P, V⟩| of the layers."""

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        damping: float,
        fisher: Fisher,
        factor_decay: float,
        statistics_every: int,
        inverses_every: int,
        warmup_updates: int,
        kl_clip: float | None,
        clip_fallback: bool,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        decoupled_weight_decay: bool,
        damped_weight_decay: bool,
        weight_sharing: WeightSharing,
        likelihood: Likelihood,
        seed: int,
        treatment: str,
        warmup_schedule: Warmup = "growing",
    ) -> None:
        check_choice("fisher", fisher, FISHERS)
        check_choice("warmup_schedule", warmup_schedule, WARMUPS)
        check_periods(statistics_every, inverses_every)
        check_count("warmup_updates", warmup_updates, low=0)
        if kl_clip is not None:
            check_range("kl_clip", kl_clip, low_in=False)
        super().__init__(
            model,
            lr=lr,
            damping=damping,
            factor_decay=factor_decay,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            damped_weight_decay=damped_weight_decay,
            likelihood=likelihood,
            fisher=fisher,
            weight_sharing=weight_sharing,
            seed=seed,
            treatment=treatment,
        )
        self._statistics_every, self._inverses_every = statistics_every, inverses_every
        self._warmup_updates, self._warmup = warmup_updates, warmup_schedule
        self._last_statistics: int | None = None
        self._last_inversion: int | None = None
        self._kl_clip, self._clip_fallback = kl_clip, clip_fallback

    # When.

    def _statistics_due(self) -> bool:
        return self._covariances_due()

    def _covariances_due(self) -> bool:
        return self._inverses_due() or self._due(self._statistics_every, self._last_statistics)

    def _inverses_due(self) -> bool:
        return self._due(self._inverses_every, self._last_inversion)

    def _due(self, every: int, last: int | None) -> bool:
        if last is None:
            return True
        if self._warmup == "first_updates":
            k = self._n_updates + 1
            return k <= self._warmup_updates or k % every == 0
        if self._warmup_updates:
            every = min(every, 1 + self._n_updates // self._warmup_updates)
        return self._n_updates - last >= every

    # What.

    def _update(self) -> None:
        self._renew()
        self._move()

    def _renew(self) -> None:
        """Averages and inverses, where they are due."""
        self._renew_averages()
        if self._inverses_due():
            with self.phases.phase("inversion"):
                self._invert()
            self._last_inversion = self._n_updates

    def _renew_averages(self) -> None:
        if self._covariances_due():
            with self.phases.phase("statistics"):
                self._n_statistics += 1
                self._average_statistics(partial(decay_of, factor_decay=self._factor_decay))
            self._last_statistics = self._n_updates

    def _average_statistics(self, decay: Decay) -> None:
        """A ← decay(k)·A + (1 − decay(k))·A_batch, the same for G."""
        inputs, gradients = self._batch_covariances()
        self._average("input_covariance", inputs, decay)
        self._average("gradient_covariance", gradients, decay)

    def _factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer → (A, G), for the layers that statistics have seen."""
        return {
            name: (state["input_covariance"], state["gradient_covariance"])
            for name, state in self._layer_state.items()
            if "gradient_covariance" in state
        }

    @abstractmethod
    def _invert(self) -> None:
        """Renew in ``self._layer_state`` what :meth:`_precondition` needs, from the averages."""

    @abstractmethod
    def _is_inverted(self, name: str) -> bool:
        """Whether a layer has what :meth:`_precondition` needs."""

    def _will_be_inverted(self, name: str) -> bool:
        return self._inverses_due() or self._is_inverted(name)

    @abstractmethod
    def _precondition(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[str, Preconditioned]:
        """Layer → P, for the layers that have a gradient and were inverted.

        Args:
            gradients: of loss and weight decay, by parameter; layers in ``self._gradient_rows`` are not in it.
        """

    def _directions(self) -> dict[nn.Parameter, Tensor]:
        """νP for the layers, the gradient for the rest."""
        self._form_gradients([name for name in self._gradient_rows if not self._is_inverted(name)])
        gradients = decayed_gradients(self)
        preconditioned = self._precondition(gradients)
        if self._kl_clip is not None:
            gradients = self._clip(self._kl_clip, preconditioned, gradients)
        return gradients | self._split({name: found.P for name, found in preconditioned.items()})

    def _clip(
        self, kl_clip: float, preconditioned: Mapping[str, Preconditioned], gradients: dict[nn.Parameter, Tensor]
    ) -> dict[nn.Parameter, Tensor]:
        """Shorten P in place by ν; returns the gradients, those of the fallback shortened too if they count."""
        groups = self._groups()
        products = [
            torch.sum(found.P * self._layers[name].join(gradients)) if found.product is None else found.product
            for name, found in preconditioned.items()
        ]
        lrs = [groups[self._layers[name].weight]["lr"] for name in preconditioned]
        others = self._of_fallback(preconditioned, gradients) if self._clip_fallback else {}
        products += [squared_norm(list(own.values())) for own in others.values()]
        lrs += others
        if not products:
            return gradients
        scale = kl_clip_factor(products, lrs, kl_clip, absolute=self.absolute_products)
        if preconditioned:
            torch._foreach_mul_([found.P for found in preconditioned.values()], scale)
        self._record("kl_clip_active", (scale < 1).to(scale.dtype))
        self._record("kl_clip_scale", scale)
        shortened: dict[nn.Parameter, Tensor] = {}
        for own in others.values():  # into new tensors: these may be the parameters' ``.grad``
            shortened |= zip(own, torch._foreach_mul(list(own.values()), scale), strict=True)
        return gradients | shortened

    def _of_fallback(
        self, preconditioned: Mapping[str, Preconditioned], gradients: Mapping[nn.Parameter, Tensor]
    ) -> dict[float, dict[nn.Parameter, Tensor]]:
        """Learning rate → the gradients of parameters outside preconditioned layers."""
        inside = {p for name in preconditioned for p in self._layers[name].parameters}
        found: dict[float, dict[nn.Parameter, Tensor]] = {}
        for group in self.param_groups:
            own = {p: gradients[p] for p in group["params"] if p in gradients and p not in inside}
            if own:
                found.setdefault(group["lr"], {}).update(own)
        return found

    def coverage(self) -> dict[str, str]:
        """As every layer-wise method's; with a KL clip, on which side of it parameters of the fallback are."""
        said = super().coverage()
        if self._kl_clip is None:
            return said
        clipped = f"{self._fallback}, {'inside' if self._clip_fallback else 'outside'} the KL clip"
        return {name: clipped if rule == self._fallback else rule for name, rule in said.items()}

    def _extra_state(self) -> dict[str, Any]:
        return super()._extra_state() | {
            "last_statistics": self._last_statistics,
            "last_inversion": self._last_inversion,
        }

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        super()._load_extra_state(extra)
        self._last_statistics, self._last_inversion = extra["last_statistics"], extra["last_inversion"]
