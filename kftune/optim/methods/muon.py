"""Muon: momentum, orthogonalised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from kftune.errors import DivergenceError
from kftune.optim.checks import check_choice, check_count, check_range
from kftune.optim.costs.matrixwise import muon_floor
from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.entry import OptimizerEntry
from kftune.optim.interface import ModelOptimizer
from kftune.optim.linalg.finite import all_finite
from kftune.optim.states import Kept
from kftune.optim.updates.adam import adamw_step
from kftune.optim.updates.momentum import can_fuse
from kftune.space import Float, Int, Space

Matrices: TypeAlias = Literal["hidden", "not_output", "all"]
AdjustLr: TypeAlias = Literal["original", "match_rms_adamw"]
NewtonSchulzDtype: TypeAlias = Literal["auto", "bfloat16", "parameter"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


class Muon(ModelOptimizer):
    """M ← μM + (1 − μ)G; W ← (1 − η·weight_decay)·W − η·c·NS((1 − μ)G + μM) for matrices, AdamW for the rest.

    Jordan et al.: Muon: an optimizer for hidden layers in neural networks, 2024. NS is a Newton-Schulz iteration that
    brings every singular value near 1, c depends on the matrix's shape. For matrices it equals
    :class:`torch.optim.Muon` (with ``ns_dtype="bfloat16"`` to the last bit).

    A matrix is a parameter with two dimensions, or the weight of an ungrouped convolution, flattened to (first
    dimension, all others): for Conv2d (d_o, d_i·k·k). Which matrices Muon takes is ``matrices``; unless it is ``all``,
    they are those of layers: linear, convolutional, recurrent, and torch's attention. Everything else is left to AdamW,
    as :meth:`coverage` says: grouped convolutions, embeddings' tables, and parameters of other modules, such as learned
    positions.

    Args:
        model: the network.
        lr: η, the change's spectral norm for a square matrix.
        momentum: μ, in [0, 1).
        nesterov: whether to look ahead; NS(M) otherwise.
        weight_decay: decoupled, for both parts, each with its own learning rate.
        matrices: ``not_output``: those of all layers but the output layer (the last one in the model's order of
            registration, whose rows are read one by one by the loss, as an embedding's are by the input).
            ``hidden``: the input layer's is left to AdamW as well: the first one's, unless an embedding comes before
            it. ``all``: every matrix, embeddings' and other modules' too.
        ns_coefficients: (a, b, c) of X ← aX + (bS + cS²)X, S = XXᵀ.
        ns_steps: iterations.
        eps: the least Frobenius norm that M is divided by before the iteration.
        adjust_lr_fn: ``original``: c = √max(1, rows/columns); ``match_rms_adamw``: c = 0.2·√max(rows, columns), for
            which AdamW's learning rates fit.
        ns_dtype: what NS is computed in: ``bfloat16``, the ``parameter``'s own type, or ``auto``: the former on CUDA,
            the latter elsewhere (bfloat16 products took 8 times as long as float32 ones on a CPU without them).
        adamw_lr_ratio: AdamW's learning rate is this times ``lr``, under a scheduler too.
        adamw_beta1: decay of AdamW's gradient average, in [0, 1).
        adamw_beta2: decay of its squared gradients' average, in [0, 1).
        adamw_eps: added to the root of the latter.
        likelihood: the model's predictive distribution, only to check the shape of its output; None for any.
        seed: not used; every optimizer of kftune takes it.

    Raises:
        ValueError: an invalid hyperparameter.
    """

    averages_squares = True

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        matrices: Matrices = "not_output",
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        ns_steps: int = 5,
        eps: float = 1e-7,
        adjust_lr_fn: AdjustLr = "original",
        ns_dtype: NewtonSchulzDtype = "auto",
        adamw_lr_ratio: float = 1.0,
        adamw_beta1: float = 0.9,
        adamw_beta2: float = 0.999,
        adamw_eps: float = 1e-8,
        likelihood: Likelihood | None = None,
        seed: int = 0,
    ) -> None:
        check_range("lr", lr)
        check_range("momentum", momentum, high=1.0)
        check_range("weight_decay", weight_decay)
        check_choice("matrices", matrices, ("hidden", "not_output", "all"))
        if len(ns_coefficients) != 3:
            raise ValueError(f"ns_coefficients must be three numbers, got {ns_coefficients!r}")
        check_count("ns_steps", ns_steps)
        check_range("eps", eps, low_in=False)
        check_choice("adjust_lr_fn", adjust_lr_fn, ("original", "match_rms_adamw"))
        check_choice("ns_dtype", ns_dtype, ("auto", "bfloat16", "parameter"))
        check_range("adamw_lr_ratio", adamw_lr_ratio)
        check_range("adamw_beta1", adamw_beta1, high=1.0)
        check_range("adamw_beta2", adamw_beta2, high=1.0)
        check_range("adamw_eps", adamw_eps, low_in=False)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "adamw_lr_ratio": adamw_lr_ratio,
            "adamw_beta1": adamw_beta1,
            "adamw_beta2": adamw_beta2,
            "adamw_eps": adamw_eps,
            # torch moves a loaded "step" to the parameter's device for groups that say so.
            "fused": can_fuse(list(model.parameters())),
        }
        super().__init__(model, defaults, likelihood=likelihood)
        self._matrices = find_matrices(model, matrices)
        self._coefficients, self._ns_steps, self._eps = ns_coefficients, ns_steps, eps
        self._adjust_lr_fn: AdjustLr = adjust_lr_fn
        self._ns_dtype: NewtonSchulzDtype = ns_dtype

    def _update(self) -> None:
        with self.phases.phase("update"):
            directions, averages = self._directions()
            if directions and not all_finite(list(directions.values())):
                raise DivergenceError(
                    "an orthogonalised momentum is not finite for this update's batch; the parameters are unchanged"
                )
            self._commit()
            for p, average in averages.items():
                self.state[p]["momentum_buffer"] = average
            for group in self.param_groups:
                self._move_matrices(group, directions)
                self._move_others(group)

    def _directions(self) -> tuple[dict[nn.Parameter, Tensor], dict[nn.Parameter, Tensor]]:
        """(matrix → NS of its momentum, flattened; matrix → its new averaged gradient)"""
        directions: dict[nn.Parameter, Tensor] = {}
        averages: dict[nn.Parameter, Tensor] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self._matrices or p.grad is None:
                    continue
                gradient, old, momentum = p.grad.flatten(1), self.state[p].get("momentum_buffer"), group["momentum"]
                average = torch.lerp(torch.zeros_like(gradient) if old is None else old, gradient, 1 - momentum)
                averages[p] = average
                directions[p] = orthogonalize(
                    gradient.lerp(average, momentum) if group["nesterov"] else average,
                    coefficients=self._coefficients,
                    n_steps=self._ns_steps,
                    eps=self._eps,
                    dtype=self._dtype_for(p),
                )
        return directions, averages

    def _dtype_for(self, parameter: nn.Parameter) -> torch.dtype:
        if self._ns_dtype == "bfloat16" or (self._ns_dtype == "auto" and parameter.is_cuda):
            return torch.bfloat16
        return parameter.dtype

    def _move_matrices(self, group: dict[str, Any], directions: Mapping[nn.Parameter, Tensor]) -> None:
        lr = group["lr"]
        for p in group["params"]:
            if p in directions:
                direction = directions[p]
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(direction.view(p.shape), alpha=-lr * lr_factor(direction.shape, self._adjust_lr_fn))

    def _move_others(self, group: dict[str, Any]) -> None:
        adamw_step(
            self,
            [p for p in group["params"] if p not in self._matrices],
            lr=group["lr"] * group["adamw_lr_ratio"],
            beta1=group["adamw_beta1"],
            beta2=group["adamw_beta2"],
            eps=group["adamw_eps"],
            weight_decay=group["weight_decay"],
            fused=group["fused"],
        )

    def _kept_as(self, parameter: nn.Parameter, key: str, value: Tensor) -> Kept | None:
        if (parameter in self._matrices) != (key == "momentum_buffer"):
            return None
        if key == "momentum_buffer":
            return Kept(tuple(parameter.flatten(1).shape), parameter.dtype)
        return super()._kept_as(parameter, key, value)

    def coverage(self) -> dict[str, str]:
        """Parameter name → ``"Muon"``, ``"AdamW"`` or ``"frozen"``."""
        return self._coverage("AdamW", dict.fromkeys(self._matrices, "Muon"))


def find_matrices(model: nn.Module, which: Matrices) -> set[nn.Parameter]:
    """The parameters that Muon takes; see :class:`Muon`."""
    found = [
        (module, p) for module in model.modules() for p in module.parameters(recurse=False) if _is_matrix(module, p)
    ]
    if which == "all":
        return {p for _, p in found}
    tables = {p for module, p in found if isinstance(module, _EMBEDDINGS)}
    # A table that is the output layer's weight too stands here as well.
    layers = [p for module, p in found if isinstance(module, _LAYERS)]
    excluded = tables | set(layers[-1:])
    if which == "hidden":
        inputs = [p for module, p in found if isinstance(module, (*_LAYERS, *_EMBEDDINGS))]
        excluded |= set(inputs[:1])
    return set(layers) - excluded


def _is_matrix(module: nn.Module, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 or (isinstance(module, _CONVOLUTIONS) and module.groups == 1 and parameter.ndim > 2)


def orthogonalize(
    matrix: Tensor, *, coefficients: tuple[float, float, float], n_steps: int, eps: float, dtype: torch.dtype
) -> Tensor:
    """About UVᵀ for ``matrix`` = USVᵀ, by X ← aX + (bS + cS²)X with S = XXᵀ, from X = matrix/‖matrix‖_F.

    Args:
        matrix: (rows, columns).
        coefficients: (a, b, c).
        n_steps: iterations.
        eps: least norm to divide by.
        dtype: of the computation and the result.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    X = matrix.to(dtype)
    X = X.T if tall else X
    X = X / X.norm().clamp(min=eps)
    for _ in range(n_steps):
        S = X @ X.T
        X = torch.addmm(X, torch.addmm(S, S, S, beta=b, alpha=c), X, beta=a)
    return (X.T if tall else X).contiguous()


def lr_factor(shape: Sequence[int], adjust_lr_fn: AdjustLr) -> float:
    """c of :class:`Muon` for a matrix of (rows, columns)."""
    rows, columns = shape
    if adjust_lr_fn == "original":
        return math.sqrt(max(1, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


ENTRIES = (
    OptimizerEntry(
        name="muon",
        cls=Muon,
        summary="Momentum orthogonalised by Newton-Schulz for matrices, AdamW for the rest",
        paper="Jordan et al.: Muon: an optimizer for hidden layers in neural networks, 2024",
        space=Space(
            {
                "lr": Float(low=1e-3, high=0.3, log=True),
                "momentum": Float(low=0.5, high=0.99, log=True, complement=True),
                "weight_decay": Float(low=1e-5, high=1.0, log=True),
                # Already relative to lr: 0.015 is what Muon's authors train language models with.
                "adamw_lr_ratio": Float(low=3e-3, high=1.0, log=True),
                "batch_size": Int(low=16, high=1024, log=True),
            }
        ),
        second_order=False,
        example={"lr": 0.05, "adamw_lr_ratio": 0.3, "weight_decay": 0.0},
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
            ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
            ({"matrices": "some"}, "matrices must be one of hidden, not_output, all, got 'some'"),
            ({"ns_coefficients": (1.0,)}, "ns_coefficients must be three numbers, got (1.0,)"),
            ({"ns_steps": 0}, "ns_steps must be a whole number of at least 1, got 0"),
            ({"eps": 0.0}, "eps must be in (0, inf), got 0.0"),
            ({"adjust_lr_fn": "rms"}, "adjust_lr_fn must be one of original, match_rms_adamw, got 'rms'"),
            ({"ns_dtype": "float16"}, "ns_dtype must be one of auto, bfloat16, parameter, got 'float16'"),
            ({"adamw_lr_ratio": -1.0}, "adamw_lr_ratio must be in [0, inf), got -1.0"),
            ({"adamw_beta1": 1.0}, "adamw_beta1 must be in [0, 1), got 1.0"),
            ({"adamw_beta2": 1.0}, "adamw_beta2 must be in [0, 1), got 1.0"),
            ({"adamw_eps": 0.0}, "adamw_eps must be in (0, inf), got 0.0"),
        ),
        floor=muon_floor,
    ),
)
