"""K-FAC's updates with a length of their own choice, and the average of its iterates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn

from kftune.optim.checks import check_range
from kftune.optim.curvature.layers import Layer
from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.interface import Closure
from kftune.optim.preconditioning.adaptive.adaptation import Adaptation, Trial
from kftune.optim.preconditioning.adaptive.options import AdaptiveOptions
from kftune.optim.preconditioning.adaptive.quadratic_model import Direction
from kftune.optim.preconditioning.damping import Preconditioner
from kftune.optim.preconditioning.kronecker import KroneckerOptimizer
from kftune.optim.updates.averages import average_iterates, averages_swapped_in, decay_of
from kftune.optim.updates.momentum import decayed_gradients


class AdaptiveOptimizer(KroneckerOptimizer):
    """θ ← θ + ηδ, δ = αΔ + μδ₀ with Δ = −P, where α and μ minimise the quadratic model; then λ and γ follow.

    With ``rescale="none"`` an update is :class:`KroneckerOptimizer`'s; the iterates are averaged in either case. A
    subclass implements :meth:`_make_preconditioners` and :meth:`_install` in the place of :meth:`_invert`.

    Args:
        model: the network.
        options: what is adapted.
        averaging: weight on the old average of the iterates, in [0, 1); 0 for no average.
        arguments: of :class:`KroneckerOptimizer`.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        options: AdaptiveOptions,
        averaging: float,
        likelihood: Likelihood,
        **arguments: Any,
    ) -> None:
        check_range("averaging", averaging, high=1.0)
        super().__init__(model, likelihood=likelihood, **arguments)
        self._averaging = averaging
        self._adaptation: Adaptation | None = None
        if options.rescale != "none":
            self._adaptation = Adaptation(model, likelihood, options, self._damping_of(self.param_groups[0]))
            self._fallback = "gradient, length by the quadratic model"
            self.adapts = ("damping",) if options.adaptive_damping else ()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; refused with ``rescale``.

        Raises:
            ValueError: with ``rescale`` there is one group.
        """
        if self.param_groups and self._adaptation is not None:
            raise ValueError(_one_group(len(self.param_groups) + 1))
        super().add_param_group(param_group)

    # What a subclass decides.

    @abstractmethod
    def _make_preconditioners(self) -> dict[str, Preconditioner]:
        """Layer → what it is preconditioned with, from the averages and :meth:`_dampings`."""

    @abstractmethod
    def _install(self, preconditioners: Mapping[str, Preconditioner]) -> None:
        """Precondition with these from now on."""

    def _invert(self) -> None:
        self._install(self._make_preconditioners())

    def _dampings(self) -> dict[str, float]:
        """As without adaptation; γ² where γ is adapted."""
        if self._adaptation is None or not self._adaptation.options.adaptive_gamma:
            return super()._dampings()
        return dict.fromkeys(self._layers, self._adaptation.gamma**2)

    def _prefers_factors(self, layer: Layer, n_rows: int) -> bool:
        # The quadratic model needs the gradient itself.
        return self._adaptation is None and super()._prefers_factors(layer, n_rows)

    # The closures of an update, which are run again.

    def _begin(self) -> None:
        if self._adaptation is not None and len(self.param_groups) > 1:
            raise ValueError(_one_group(len(self.param_groups)))
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

    # The update.

    def _update(self) -> None:
        if self._adaptation is None:
            super()._update()
        else:
            self._update_by_model(self._adaptation)
            self._adaptation.replay.clear()
        if self._averaging:
            with self.phases.phase("update"):
                trained = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
                average_iterates(self.state, trained, partial(decay_of, factor_decay=self._averaging), self._n_updates)

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
        self._commit()
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
        saved = extra.get("adaptation")  # states of before a method could adapt itself do not say
        if (self._adaptation is None) != (saved is None):
            its, own = ("plain", "adaptive") if saved is None else ("adaptive", "plain")
            raise ValueError(f"the state_dict is one of {its} K-FAC, this optimizer is {own}: see its options")

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        super()._load_extra_state(extra)
        if self._adaptation is not None:
            self._adaptation.load(extra["adaptation"])


def _one_group(n: int) -> str:
    return (
        "rescale takes one parameter group, whose lr, damping and weight_decay are those of the quadratic model of all "
        f"parameters, got {n} groups: use rescale='none' for several"
    )
