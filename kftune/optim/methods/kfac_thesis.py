"""K-FAC with normalised factors, as in Ulbæk's thesis and its code."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from kftune.optim.checks import check_choice, check_range
from kftune.optim.curvature.likelihoods import FISHERS, Fisher, Likelihood
from kftune.optim.entry import OptimizerEntry
from kftune.optim.linalg.decompositions import noisy_inverses, ridged_cholesky, solve_between
from kftune.optim.preconditioning.layerwise import LayerwiseOptimizer
from kftune.space import Float, Int, Space

Normalization: TypeAlias = Literal["max", "signed_max"]
MomentumSchedule: TypeAlias = Literal["linear", "exponential", "paper", "constant"]
Inversion: TypeAlias = Literal["cholesky", "lu"]
INVERSIONS: tuple[str, ...] = get_args(Inversion)
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
SCHEDULES: tuple[str, ...] = get_args(MomentumSchedule)


class ThesisKFAC(LayerwiseOptimizer):
    """W ← W − lr·N, with N the normalised running average of the normalised G⁻¹∇W A⁻¹.

    Ulbæk: Optimizing neural networks with K-FAC (thesis), 2022, as its code does it. For every layer and update, with
    μ(X) = X/max|X| and k the number of updates done:

    1. A, G and ∇W are means over all micro-batches of the update (the thesis' artificial batch);
    2. each is divided by its maximum;
    3. A ← αA + (1 − α)μ(A_batch), the same for G, α = ``momentum_at(k)``, 0 on the first update; here and in step 5, k
       of a layer or parameter that was first used late are the updates that it was in;
    4. neither is damped (but see ``ridge``);
    5. N ← αN + (1 − α)μ(G⁻¹μ(∇W)A⁻¹), W ← W − lr·N.

    So ``lr`` is the largest change of any weight of a layer. A bias is part of the layer's matrix. Parameters outside
    linear layers and convolutions go through step 5 with the gradient itself in place of G⁻¹∇W A⁻¹.

    Args:
        model: the network.
        lr: largest change of any weight in one update.
        m_rate: speed of the schedule of α.
        m_max: largest α, in [0, 1).
        momentum_schedule: α after k updates: ``linear`` min(0.05·k·m_rate, m_max), ``exponential``
            min(1 − exp(−0.1·k·m_rate), m_max), ``paper`` min(1 − 1/(k + 1), m_max), ``constant`` m_max.
        normalization: ``max`` divides by the largest magnitude; ``signed_max``, as the thesis' code, by the largest
            entry, which can flip the sign of a step.
        labels: whose gradients make G; the thesis' is ``permuted``: the micro-batch's own predictions (classes, or
            outputs for ``gaussian``) dealt out at random. G is in its code's scale (``gradient_scale``): with
            ``permuted`` and ``empirical`` that of the loss' gradients, which its normalisation takes out again.
        inversion: ``cholesky`` keeps every factor positive definite with ``ridge``; ``lu`` inverts them as they are, as
            the thesis' code, which adds noise to the first layer's A, for constant pixels make it singular. Most of
            that layer's step is noise then.
        ridge: every factor, none of whose entries exceeds 1, gets this on its diagonal, about what float32 resolves;
            ten times as much, and so on, where that does not make it positive definite. With ``lu`` it is the largest
            entry of the noise, which uniform draws make.
        likelihood: the model's predictive distribution.
        seed: of the labels' permutations or draws.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    distributed = True
    gradient_scale = "loss"

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        m_rate: float = 1.0,
        m_max: float = 0.5,
        momentum_schedule: MomentumSchedule = "linear",
        normalization: Normalization = "max",
        labels: Fisher = "permuted",
        inversion: Inversion = "cholesky",
        ridge: float = 1e-7,
        likelihood: Likelihood,
        seed: int = 0,
    ) -> None:
        check_range("lr", lr)
        check_range("m_rate", m_rate)
        check_range("m_max", m_max, high=1.0)
        check_choice("momentum_schedule", momentum_schedule, SCHEDULES)
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("labels", labels, FISHERS)
        check_choice("inversion", inversion, INVERSIONS)
        check_range("ridge", ridge)
        super().__init__(
            model,
            {"lr": lr},
            likelihood=likelihood,
            fisher=labels,
            seed=seed,
            treatment="Kronecker-factored, normalised",
            fallback="normalised gradient",
        )
        self._m_rate, self._m_max = m_rate, m_max
        self._momentum_schedule = momentum_schedule
        self._signed = normalization == "signed_max"
        self._inversion = inversion
        self._ridge, self._noise_seed = ridge, seed

    def momentum_at(self, k: int) -> float:
        """α of the update that follows k others."""
        if k == 0:
            return 0.0
        schedule = {
            "linear": 0.05 * k * self._m_rate,
            "exponential": 1 - math.exp(-0.1 * k * self._m_rate),
            "paper": 1 - 1 / (k + 1),
            "constant": self._m_max,
        }
        return min(schedule[self._momentum_schedule], self._m_max)

    def readings(self) -> dict[str, float]:
        """As every optimizer's; ``momentum`` is the last update's α."""
        return super().readings() | {"momentum": self.momentum_at(max(0, self._n_updates - 1))}

    def _statistics_due(self) -> bool:
        return True

    def _update(self) -> None:
        with self.phases.phase("statistics"):
            self._average_factors()
        with self.phases.phase("inversion"):
            factors = self._factorize()
        with self.phases.phase("preconditioning"):
            steps = self._steps(factors)
            self._check_directions(steps.values())
        self._commit()
        with self.phases.phase("update"):
            for group in self.param_groups:
                for k, parameters in self._by_steps(p for p in group["params"] if p in steps).items():
                    averages = [self.state[p]["step_average"] for p in parameters]
                    torch._foreach_lerp_(averages, [steps[p] for p in parameters], 1 - self.momentum_at(k))
                    torch._foreach_add_(parameters, averages, alpha=-group["lr"])
        self._n_updates += 1

    def _by_steps(self, parameters: Iterable[nn.Parameter]) -> dict[int, list[Any]]:
        """Updates that parameters were in before this one, which is counted → these; N of step 5 is zero at first."""
        found: dict[int, list[Any]] = {}
        for p in parameters:
            state = self.state[p]
            # States of before have N alone.
            k = state.setdefault("n_steps", self._n_updates if "step_average" in state else 0)
            state["n_steps"] += 1
            if "step_average" not in state:
                state["step_average"] = torch.zeros_like(p)
            found.setdefault(k, []).append(p)
        return found

    def _average_factors(self) -> None:
        def alpha(k: int) -> float:
            return self.momentum_at(k - 1)

        inputs, gradients = self._batch_covariances()
        self._n_statistics += 1
        self._average("input_covariance", {name: self._normalize(A) for name, A in inputs.items()}, alpha)
        self._average("gradient_covariance", {name: self._normalize(G) for name, G in gradients.items()}, alpha)

    def _normalize(self, tensor: Tensor) -> Tensor:
        """μ(X), in place; zeros stay zeros."""
        if tensor.numel() == 0:
            return tensor
        lowest, largest = tensor.aminmax()
        if not self._signed:
            largest = torch.maximum(-lowest, largest)
        return tensor.div_(torch.where(largest == 0, torch.ones_like(largest), largest))

    def _factorize(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer → lower Cholesky factors of A and G; with ``lu`` their inverses."""
        seen = [(name, state) for name, state in self._layer_state.items() if "gradient_covariance" in state]
        names = [f"{side} covariance of layer {name!r}" for name, _ in seen for side in ("input", "gradient")]
        matrices = [state[f"{side}_covariance"] for _, state in seen for side in ("input", "gradient")]
        if self._inversion == "lu":
            # The same in every process, which must not drift apart, and in a run that is resumed.
            generator = torch.Generator().manual_seed((self._noise_seed * 1_000_003 + self._n_updates) % 2**63)
            factors = noisy_inverses(names, matrices, self._ridge, noisy=(0,), generator=generator)
        else:
            factors = ridged_cholesky(names, matrices, self._ridge)
        return {name: (factors[2 * i], factors[2 * i + 1]) for i, (name, _) in enumerate(seen)}

    def _extra_state(self) -> dict[str, Any]:
        return super()._extra_state() | {"noise_seed": self._noise_seed}

    def _load_extra_state(self, extra: dict[str, Any]) -> None:
        super()._load_extra_state(extra)
        self._noise_seed = extra.get("noise_seed", self._noise_seed)  # states of before do not tell

    def _steps(self, factors: dict[str, tuple[Tensor, Tensor]]) -> dict[nn.Parameter, Tensor]:
        """μ(G⁻¹μ(∇W)A⁻¹), or μ(gradient), of every parameter that has a gradient."""
        gradients = {p: p.grad for group in self.param_groups for p in group["params"] if p.grad is not None}
        found: dict[str, Tensor] = {}
        for name in self._layers_with_gradient():
            if name in factors:
                layer = self._layers[name]
                V = self._normalize(layer.join(gradients).clone())
                A, G = factors[name]
                found[name] = self._normalize(G @ V @ A if self._inversion == "lu" else solve_between(G, V, A))
        steps = self._split(found)
        return steps | {p: self._normalize(g.clone()) for p, g in gradients.items() if p not in steps}


ENTRIES = (
    OptimizerEntry(
        name="kfac_thesis",
        cls=ThesisKFAC,
        summary="K-FAC with normalised factors, gradients and steps, undamped",
        paper="Ulbæk: thesis on K-FAC, 2022",
        space=Space(
            {
                "lr": Float(low=0.01, high=0.5),
                "effective_batch_size": Int(low=64, high=1024),
                "m_rate": Float(low=0.01, high=3.0),
                "m_max": Float(low=0.0, high=0.95),
            },
            {"batch_size": 64},
        ),
        second_order=True,
        # Undamped, and with classes the G of the outputs is singular: in float32 a good part of a step is rounding.
        example={"lr": 0.1},
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"m_rate": -1.0}, "m_rate must be in [0, inf), got -1.0"),
            ({"m_max": 1.0}, "m_max must be in [0, 1), got 1.0"),
            ({"momentum_schedule": "cosine"}, "momentum_schedule must be one of linear, exponential, paper, constant"),
            ({"normalization": "mean"}, "normalization must be one of max, signed_max, got 'mean'"),
            ({"inversion": "qr"}, "inversion must be one of cholesky, lu, got 'qr'"),
            ({"labels": "sampled"}, "labels must be one of mc, exact, empirical, permuted, got 'sampled'"),
        ),
        deterministic={"labels": "exact"},
    ),
)
