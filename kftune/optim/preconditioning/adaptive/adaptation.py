"""Length and momentum of an update, and what λ and γ become after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kftune.errors import DivergenceError
from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.preconditioning.adaptive.options import AdaptiveOptions
from kftune.optim.preconditioning.adaptive.quadratic_model import (
    Direction,
    QuadraticModel,
    combine,
    inner_products,
)
from kftune.optim.preconditioning.adaptive.replay import Replay
from kftune.optim.preconditioning.damping import Preconditioner
from kftune.optim.updates.averages import State

_PREVIOUS = "previous_update"
_MIN_DAMPING = 1e-8
_DECAY = 19 / 20


_NOT_THE_SAME = (
    "a closure gave another loss when it was run again at the same parameters, which are unchanged. K-FAC with rescale "
    "runs all closures of an update again at step(), where each must see its own batch: one made in a loop sees "
    "the loop's last batch, unless it is bound, as in def closure(xb=xb, yb=yb); and a batch must be neither drawn "
    "inside the closure nor overwritten before step()"
)


class Trial(NamedTuple):
    """What one γ makes of an update.

    Attributes:
        gamma: γ.
        preconditioners: layer → what it is preconditioned with; empty where nothing was inverted.
        direction: Δ.
    """

    gamma: float
    preconditioners: Mapping[str, Preconditioner]
    direction: Direction


class Step(NamedTuple):
    """The best update of the best trial.

    Attributes:
        trial: its number.
        update: the update, the learning rate inside.
        predicted: M(update) − M(0), as the damping goes by it.
        alpha: what Δ was multiplied with.
        momentum: what δ₀ was multiplied with; 0 where there is none.
    """

    trial: int
    update: dict[nn.Parameter, Tensor]
    predicted: float
    alpha: float
    momentum: float


class Adaptation:
    """Length and momentum of K-FAC's updates by the quadratic model, and the dampings λ and γ that follow from it.

    Args:
        model: the network.
        likelihood: its predictive distribution.
        options: what is adapted.
        damping: λ + η at the start.

    Attributes:
        replay: the closures of the update that is being made.
        gamma: γ, which takes the place of √λ in the damping of the factors where it is adapted.
    """

    def __init__(self, model: nn.Module, likelihood: Likelihood, options: AdaptiveOptions, damping: float) -> None:
        self.options = options
        self.replay = Replay(model)
        self.gamma = damping**0.5
        self._likelihood = likelihood
        self._last_trial = 0  # the update at which γ was tried last

    def gammas(self, n_updates: int) -> tuple[float, ...]:
        """The γ to try at an update that inverts: ω₂γ, γ and γ/ω₂ if they are due, else γ (section 6.6)."""
        if not self.options.adaptive_gamma or not self._gamma_is_due(n_updates):
            return (self.gamma,)
        self._last_trial = n_updates
        ratio = _DECAY ** (self.options.gamma_every / 2)
        return max(ratio * self.gamma, _MIN_DAMPING**0.5), self.gamma, self.gamma / ratio

    def _gamma_is_due(self, n_updates: int) -> bool:
        every = self.options.gamma_every
        if self.options.gamma_at_multiples:  # one has come since the last time
            return (n_updates + 1) // every > (self._last_trial + 1) // every
        return n_updates - self._last_trial >= every

    def step(
        self,
        gradient: Direction,
        trials: Sequence[Direction],
        state: State,
        *,
        lr: float,
        damping: float,
        weight_decay: float,
    ) -> Step:
        """lr·δ for the δ that minimises M on the span of Δ, δ₀ and −∇h outside Δ, with the Δ that M likes best.

        Args:
            gradient: ∇h.
            trials: the Δ of each γ, all of the same parameters.
            state: where :meth:`take` has left δ₀.
            lr: what the minimiser is multiplied with.
            damping: λ.
            weight_decay: η.

        Raises:
            DivergenceError: if the model is not finite.
            RuntimeError: if a closure has not the loss that it had.
        """
        left_out, previous = _left_out(gradient, trials[0]), _previous(gradient, state)
        others = [d for d in (left_out, previous) if d]
        directions = [*trials, *others]
        model = self._model(gradient, directions, damping, weight_decay)
        shared = range(len(trials), len(directions))
        models = [model.among([i, *shared]) for i in range(len(trials))]
        minimizers = [candidate.minimizer() for candidate in models]
        lowest = [candidate.change(c) for candidate, c in zip(models, minimizers, strict=True)]
        best = min(range(len(trials)), key=lowest.__getitem__)
        c = lr * minimizers[best]
        coefficients = c.tolist()
        return Step(
            best,
            combine([trials[best], *others], coefficients),
            models[best].change(c, damped=self.options.damped_reduction),
            alpha=coefficients[0],
            momentum=coefficients[-1] if previous else 0.0,
        )

    def take(self, step: Step, state: State) -> None:
        """θ ← θ + update; with momentum it is kept in ``state`` as the next δ₀."""
        if step.update:
            torch._foreach_add_(list(step.update), list(step.update.values()))
        if self.options.rescale == "alpha_and_momentum":
            for known in state.values():
                known.pop(_PREVIOUS, None)
            for p, change in step.update.items():
                state[p][_PREVIOUS] = change

    def _model(
        self, gradient: Direction, directions: Sequence[Direction], damping: float, weight_decay: float
    ) -> QuadraticModel:
        """M on the span of ``directions``.

        Raises:
            DivergenceError: it is not finite.
            RuntimeError: a closure is not what it was.
        """
        curvature, differs = self.replay.fisher_products(directions, self._likelihood)
        products = inner_products(gradient, directions)
        padded = nn.functional.pad(curvature, (1, 0, 1, 0))
        padded[0, 0] = differs  # in one copy with the rest
        curvature, products = torch.stack([padded, products]).cpu()
        if float(curvature[0, 0]) > 0:
            raise RuntimeError(_NOT_THE_SAME)
        if not bool(torch.isfinite(curvature + products).all()):
            raise DivergenceError(
                "the quadratic model is not finite for this update's batch; the parameters are unchanged"
            )
        return QuadraticModel(
            curvature[1:, 1:],
            products[1:, 1:],
            products[0, 1:],
            damping,
            weight_decay,
            10 * max(torch.finfo(g.dtype).eps for g in gradient.values()),
        )

    def damping_is_due(self, n_updates: int) -> bool:
        """Whether λ is adapted after the update that follows ``n_updates`` others."""
        return self.options.adaptive_damping and (n_updates + 1) % self.options.damping_every == 0

    def adapted_damping(self, damping: float, step: Step, weight_decay: float) -> float:
        """λ after ``step``, which the parameters have taken (section 6.5)."""
        change = self.replay.loss_change()
        if weight_decay != 0:
            ends = [torch.sum(d * (p - 0.5 * d)).double() for p, d in step.update.items()]
            change = change + weight_decay * torch.stack(ends).sum()
        return levenberg_marquardt(damping, float(change), step.predicted, self.options.damping_every)

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {"gamma": self.gamma, "last_trial": self._last_trial}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self.gamma, self._last_trial = state["gamma"], state["last_trial"]
        self.replay.clear()


def levenberg_marquardt(damping: float, change: float, predicted: float, every: int) -> float:
    """λ multiplied or divided by ω₁ = (19/20)^every, as ρ = change/predicted is above ¾ or below ¼; at least 1e-8.

    Where the objective did not stay finite, λ grows. Where the model did not expect it to fall (a learning rate of 0,
    or one that overshoots), ρ says nothing of the model, and λ stays.

    Args:
        damping: λ.
        change: h(θ + δ) − h(θ).
        predicted: M(δ) − M(0).
        every: T₁, updates between two adaptations.
    """
    factor = _DECAY**every
    if predicted >= 0:
        return damping
    if not math.isfinite(change) or change / predicted < 0.25:
        return damping / factor
    return max(damping * factor, _MIN_DAMPING) if change / predicted > 0.75 else damping


def _left_out(gradient: Direction, natural: Direction) -> Direction:
    """−∇h of the parameters that Δ leaves out."""
    names = [p for p in gradient if p not in natural]
    return dict(zip(names, torch._foreach_neg([gradient[p] for p in names]), strict=True)) if names else {}


def _previous(gradient: Direction, state: State) -> Direction:
    """δ₀ of the parameters that have a gradient."""
    return {p: state[p][_PREVIOUS] for p in gradient if p in state and _PREVIOUS in state[p]}
