"""Shampoo: gradients preconditioned from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from kftune.optim.checks import check_choice, check_range
from kftune.optim.costs.matrixwise import shampoo_floor
from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.entry import OptimizerEntry
from kftune.optim.matrixwise.optimizer import Dimensions, MatrixwiseOptimizer, Side, along_dimensions, dimension_of
from kftune.optim.matrixwise.roots import inverse_roots
from kftune.optim.updates.adam import adam_directions, adam_state
from kftune.space import Float, Int, Space

Grafting: TypeAlias = Literal["adam", "sgd", "none"]


class Shampoo(MatrixwiseOptimizer):
    """P = L^(−1/4)·M̂·R^(−1/4) for every matrix; W ← (1 − lr·weight_decay)·W − lr·(‖D‖/‖P‖)·P.

    Gupta, Koren, Singer: Shampoo: preconditioned stochastic tensor optimization, 2018, with the practice of Anil et
    al. 2020 and Shi et al. 2023: L and R are exponential averages of GGᵀ and GᵀG (normalised, so without a bias towards
    their start), M̂ is the averaged gradient, and the length of every matrix's step is grafted from another method's
    direction D.

    A parameter with two or more dimensions is one matrix, (d_o, d_i·k·k) for Conv2d. A side longer than
    ``max_dimension``, or of length 1, is left as it is, and the other one's exponent is then −1/2 (−1/(2·number of
    preconditioned sides)). Up to the first inverse roots, at a parameter's ``inverses_every``-th gradient, D itself is
    the direction: factors of a few gradients have no full rank. Vectors are updated by the method of ``grafting``
    (with ``none`` by AdamW), with the same learning rate and weight decay.

    Args:
        model: the network.
        lr: learning rate; with ``grafting="adam"`` AdamW's fits.
        beta1: decay of the gradient's running average M̂ (its bias is corrected), in [0, 1); 0 for the gradient itself.
        beta2: decay of Adam's squared gradients, in [0, 1).
        eps: added to the root of the latter.
        factor_decay: weight on the old L and R, in [0, 1]; 1 for the plain mean over all updates (the 2018 paper's
            sum, but for a factor that grafting takes out and that is √updates without it).
        damping: δ of (L + δ·λ_max(L)·I)^(−1/4), relative to the largest eigenvalue.
        inverses_every: updates between two inverse roots.
        grafting: D is Adam's direction (``adam``), M̂ (``sgd``), or P's own length is kept (``none``).
        max_dimension: the longest side that gets a factor; 0 for none.
        precondition_1d: whether vectors are preconditioned too, as matrices of one column.
        dimensions: ``matrix``, as said; ``each``: of k > 2 dimensions every one has its own factor, with the exponent
            −1/(2k), as in the 2018 paper (algorithm 2); ``merged``, distributed Shampoo's ``merge_small_dims``:
            neighbouring dimensions, from the first on, are one where their product is at most ``max_dimension``
            (matrices, too, can become a vector).
        weight_decay: decoupled.
        likelihood: the model's predictive distribution, only to check the shape of its output; None for any.
        seed: not used; every optimizer of kftune takes it.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        factor_decay: float = 0.999,
        damping: float = 1e-6,
        inverses_every: int = 100,
        grafting: Grafting = "adam",
        max_dimension: int = 8192,
        precondition_1d: bool = False,
        dimensions: Dimensions = "matrix",
        weight_decay: float = 0.0,
        likelihood: Likelihood | None = None,
        seed: int = 0,
    ) -> None:
        check_range("damping", damping, low_in=False)
        check_choice("grafting", grafting, ("adam", "sgd", "none"))
        self._grafting: Grafting = grafting
        super().__init__(
            model,
            {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay},
            factor_decay=factor_decay,
            inverses_every=inverses_every,
            max_dimension=max_dimension,
            precondition_1d=precondition_1d,
            likelihood=likelihood,
            dimensions=dimensions,
            treatment="Shampoo",
            fallback="SGD" if grafting == "sgd" else "AdamW",
        )
        self._damping = damping

    def _sides_of(self, parameter: nn.Parameter) -> tuple[Side, ...] | None:
        sides = super()._sides_of(parameter)
        # Vectors too, as matrices without a factor.
        return () if sides is None and self._grafting == "sgd" else sides

    def _new_state(self, gradient: Tensor) -> dict[str, Any]:
        return adam_state(gradient) if self._grafting == "adam" else {"exp_avg": torch.zeros_like(gradient)}

    def _update(self) -> None:
        matrices = self._matrices()
        with self.phases.phase("statistics"):
            self._average_factors(matrices)
        due = [p for p in matrices if self.state[p]["n_updates"] % self._inverses_every == 0]
        if due:
            with self.phases.phase("inversion"):
                self._take_roots(due)
        with self.phases.phase("update"):
            grafts = self._graft_directions(matrices)
        with self.phases.phase("preconditioning"):
            directions = {p: self._precondition(p, graft) for p, graft in grafts.items()}
            self._check_directions(directions)
        with self.phases.phase("update"):
            self._move(directions)
            self._adamw(self._others())

    def _take_roots(self, due: list[nn.Parameter]) -> None:
        keys = [(p, side) for p in due for side in self._sides[p]]
        roots = inverse_roots(
            [self._label(p, side) for p, side in keys],
            [self.state[p][f"{side}_covariance"] for p, side in keys],
            damping=self._damping,
            exponents=[1 / (2 * len(self._sides[p])) for p, _ in keys],
        )
        for (p, side), root in zip(keys, roots, strict=True):
            self.state[p][f"{side}_root"] = root

    def _graft_directions(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[nn.Parameter, tuple[Tensor, Tensor]]:
        """Parameter → (M̂, of any length where it will be grafted; D)."""
        grafts: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        for group, own in self._by_group(gradients):
            states = self._copied_averages(own)
            given = [gradients[p] for p in own]
            averages = [state["exp_avg"] for state in states]
            if self._grafting == "adam":
                lengths = adam_directions(
                    given, states, beta1=group["beta1"], beta2=group["beta2"], eps=group["eps"], fused=group["fused"]
                )
            else:
                torch._foreach_lerp_(averages, given, 1 - group["beta1"])
                averages = lengths = [
                    average / (1 - group["beta1"] ** state["n_updates"])
                    for average, state in zip(averages, states, strict=True)
                ]
            grafts |= dict(zip(own, zip(averages, lengths, strict=True), strict=True))
        return grafts

    def _precondition(self, parameter: nn.Parameter, graft: tuple[Tensor, Tensor]) -> Tensor:
        M, D = graft
        sides = {dimension_of(side): self.state[parameter].get(f"{side}_root") for side in self._sides[parameter]}
        # Transposed, they come to stand on the right of a matrix as they are.
        roots = {i: root.T if i == 1 else root for i, root in sides.items() if root is not None}
        if not roots:
            return D
        P = along_dimensions(M, roots)
        if self._grafting == "none":
            return P
        return P.mul_(D.norm() / P.norm().clamp(min=torch.finfo(P.dtype).tiny))


ENTRIES = (
    OptimizerEntry(
        name="shampoo",
        cls=Shampoo,
        summary="Gradients preconditioned from both sides by roots of their second moments, with a grafted step length",
        paper="Gupta, Koren, Singer: Shampoo: preconditioned stochastic tensor optimization, 2018; Shi et al., 2023",
        space=Space(
            {
                "lr": Float(low=1e-5, high=3e-2, log=True),
                "beta1": Float(low=0.5, high=0.99, log=True, complement=True),
                "factor_decay": Float(low=0.9, high=0.9999, log=True, complement=True),
                "damping": Float(low=1e-8, high=1e-2, log=True),
                "weight_decay": Float(low=1e-5, high=1.0, log=True),
                "batch_size": Int(low=16, high=1024, log=True),
            },
            {"inverses_every": 100},
        ),
        second_order=True,
        example={"lr": 0.01, "inverses_every": 2},
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"beta1": 1.0}, "beta1 must be in [0, 1), got 1.0"),
            ({"beta2": -0.1}, "beta2 must be in [0, 1), got -0.1"),
            ({"eps": 0.0}, "eps must be in (0, inf), got 0.0"),
            ({"factor_decay": 1.1}, "factor_decay must be in [0, 1], got 1.1"),
            ({"damping": 0.0}, "damping must be in (0, inf), got 0.0"),
            ({"inverses_every": 0}, "inverses_every must be a whole number of at least 1, got 0"),
            ({"grafting": "rmsprop"}, "grafting must be one of adam, sgd, none, got 'rmsprop'"),
            ({"max_dimension": -1}, "max_dimension must be a whole number of at least 0, got -1"),
            ({"dimensions": "all"}, "dimensions must be one of matrix, each, merged, got 'all'"),
            ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
        ),
        floor=shampoo_floor,
    ),
)
