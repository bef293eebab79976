"""What Shampoo and SOAP share: parameters as matrices, and the second moments of their gradients' rows and columns.

A parameter with two or more dimensions is the matrix (first dimension, product of the others): (d_o, d_i) for Linear,
(d_o, d_i·k·k) for Conv2d. With gradient G its *left* factor L averages GGᵀ, its *right* factor R averages GᵀG.

With ``dimensions`` other than ``matrix`` a parameter can keep more dimensions than two. Then each has a factor, that of
G unfolded along it, and stands where this speaks of a *side* of a matrix.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from kftune.errors import DivergenceError
from kftune.optim.checks import check_choice, check_count, check_range
from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.interface import ModelOptimizer
from kftune.optim.linalg.finite import all_finite
from kftune.optim.linalg.gram import add_gram
from kftune.optim.linalg.products import padded_zeros, precise
from kftune.optim.states import Kept
from kftune.optim.updates.adam import adamw_group, adamw_group_step
from kftune.optim.updates.averages import debiased_decay_of, lerped

Dimensions: TypeAlias = Literal["matrix", "each", "merged"]
DIMENSIONS: tuple[str, ...] = get_args(Dimensions)

Side: TypeAlias = str
"""``left`` or ``right`` of a matrix, ``dimension0``, ``dimension1``, … of what has more dimensions."""


class MatrixwiseOptimizer(ModelOptimizer):
    """An optimizer that multiplies gradient matrices from the left and from the right.

    What of an update can be refused (a batch, a factor without a decomposition) is refused before the state changes.

    All it keeps of a parameter is in ``self.state``: ``n_updates`` (gradients seen), ``left_covariance`` and
    ``right_covariance`` (normalised averages, of which only the lower triangles count), and what the subclass adds.
    Every other parameter is updated by AdamW with the same hyperparameters.

    Args:
        model: the network.
        hyperparameters: of the parameter group: ``lr``, ``beta1``, ``beta2``, ``eps``, ``weight_decay``.
        factor_decay: weight on the old L and R.
        inverses_every: gradients of a parameter between two uses of its L and R.
        max_dimension: a longer side has no factor.
        precondition_1d: whether a vector counts as a matrix of one column.
        dimensions: what a parameter is taken for, see :func:`shape_of`.
        likelihood: the model's predictive distribution; None if it does not matter.
        treatment: what :meth:`coverage` calls the matrices' rule.
        fallback: what it calls the rule for everything else.
    """

    averages_squares = True

    def __init__(
        self,
        model: nn.Module,
        hyperparameters: dict[str, float],
        *,
        factor_decay: float,
        inverses_every: int,
        max_dimension: int,
        precondition_1d: bool,
        dimensions: Dimensions,
        likelihood: Likelihood | None,
        treatment: str,
        fallback: str,
    ) -> None:
        group = adamw_group(list(model.parameters()), **hyperparameters)
        check_range("factor_decay", factor_decay, high=1.0, high_in=True)
        check_count("inverses_every", inverses_every)
        check_count("max_dimension", max_dimension, low=0)
        check_choice("dimensions", dimensions, DIMENSIONS)
        self._factor_decay, self._inverses_every = factor_decay, inverses_every
        self._max_dimension, self._precondition_1d = max_dimension, precondition_1d
        self._dimensions: Dimensions = dimensions
        self._names: dict[nn.Parameter, str] = {}
        self._shapes: dict[nn.Parameter, tuple[int, ...]] = {}  # that each is taken for
        self._sides: dict[nn.Parameter, tuple[Side, ...]] = {}
        super().__init__(model, group, likelihood=likelihood)
        self._moments: dict[tuple[nn.Parameter, Side], Tensor] = {}  # GGᵀ or GᵀG of this update
        self._saved: dict[nn.Parameter, dict[str, Any] | None] = {}  # of the state, before this update
        self._treatment, self._fallback = treatment, fallback

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the group's matrices are preconditioned too."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name, p in zip(group["param_names"], group["params"], strict=True):
            self._names[p] = name
            self._shapes[p] = shape_of(p.shape, self._dimensions, self._max_dimension)
            sides = self._sides_of(p)
            if sides is not None:
                self._sides[p] = sides

    def _sides_of(self, parameter: nn.Parameter) -> tuple[Side, ...] | None:
        """The sides of a parameter that have a factor; None if AdamW updates it."""
        if parameter.ndim < (1 if self._precondition_1d else 2):
            return None
        return sides_of(self._shapes[parameter], self._max_dimension) or None

    def _matrix(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """A tensor of a parameter's shape in the shape that it is taken for."""
        return tensor.reshape(self._shapes[parameter])

    @abstractmethod
    def _new_state(self, gradient: Tensor) -> dict[str, Any]:
        """What the subclass keeps of a matrix, before its first gradient."""

    def _begin(self) -> None:
        super()._begin()
        self._moments = {}
        self._saved = {p: dict(self.state[p]) if p in self.state else None for p in self._sides}

    def _commit(self) -> None:
        super()._commit()
        self._saved = {}

    def _roll_back(self) -> None:
        super()._roll_back()
        for p, state in self._saved.items():
            if state is None:
                self.state.pop(p, None)
            else:
                self.state[p] = state
        self._saved = {}

    def _batch_statistics(self) -> list[Tensor]:
        with self.phases.phase("statistics"):
            for p, sides in self._sides.items():
                if p.grad is not None:
                    gradient = self._matrix(p, p.grad).contiguous().to(precise(p.dtype))
                    for side in sides:
                        rows = unfolded(gradient, dimension_of(side))
                        moment = padded_zeros(rows.shape[1], rows.shape[1], like=rows)
                        add_gram(moment, rows)
                        self._moments[p, side] = moment
            return [moment.diagonal() for moment in self._moments.values()]

    def _bad_statistic(self) -> str | None:
        bad = (key for key, moment in self._moments.items() if not all_finite([moment.diagonal()]))
        return next((f"what goes into the {self._label(*key)}" for key in bad), None)

    def _matrices(self) -> dict[nn.Parameter, Tensor]:
        """Preconditioned parameter that has a gradient → that gradient as a contiguous matrix."""
        gradients = {
            p: self._matrix(p, p.grad).contiguous().to(precise(p.dtype)) for p in self._sides if p.grad is not None
        }
        for p, gradient in gradients.items():
            if not self.state[p]:
                self.state[p] = {"n_updates": 0} | self._new_state(gradient)
        return gradients

    def _others(self) -> list[nn.Parameter]:
        """Parameters with a gradient that are not preconditioned."""
        return [p for p in self._names if p.grad is not None and p not in self._sides]

    def _average_factors(self, gradients: Mapping[nn.Parameter, Tensor]) -> None:
        """Count the gradients, and take GGᵀ and GᵀG into L and R."""
        for p in gradients:
            state = self.state[p]
            state["n_updates"] += 1
            decay = debiased_decay_of(state["n_updates"], self._factor_decay)
            for side in self._sides[p]:
                moment = self._moments.pop((p, side))
                old = state.get(f"{side}_covariance")
                state[f"{side}_covariance"] = moment if old is None else lerped([old], [moment], 1 - decay)[0]

    def _copied_averages(self, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
        """States whose averages of the gradient are copies: they may change in place before an update is sure.

        What they were stays with the state that an update that is refused goes back to.
        """
        found = []
        for p in parameters:
            state = self.state[p]
            state.update({key: state[key].clone() for key in ("step", "exp_avg", "exp_avg_sq") if key in state})
            found.append(state)
        return found

    def _label(self, parameter: nn.Parameter, side: Side) -> str:
        """What errors call a factor."""
        return f"{side} factor of parameter {self._names[parameter]!r}"

    def _by_group(self, parameters: Iterable[nn.Parameter]) -> list[tuple[dict[str, Any], list[nn.Parameter]]]:
        """(group, those of its parameters), for every group with any."""
        wanted = set(parameters)
        split = [(group, [p for p in group["params"] if p in wanted]) for group in self.param_groups]
        return [(group, own) for group, own in split if own]

    def _check_directions(self, directions: Mapping[nn.Parameter, Tensor]) -> None:
        if directions and not all_finite(list(directions.values())):
            raise DivergenceError(
                "the preconditioned gradient is not finite for this update's batch; the parameters are unchanged"
            )
        self._commit()

    def _move(self, directions: Mapping[nn.Parameter, Tensor]) -> None:
        """θ ← (1 − lr·weight_decay)·θ − lr·direction."""
        for group, own in self._by_group(directions):
            parameters: list[Tensor] = list(own)
            if group["weight_decay"] != 0:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            shaped = [directions[p].reshape(p.shape).to(p.dtype) for p in own]
            torch._foreach_add_(parameters, shaped, alpha=-group["lr"])

    def _adamw(self, parameters: Iterable[nn.Parameter]) -> None:
        for group, own in self._by_group(parameters):
            adamw_group_step(self, group, own)

    def _kept_as(self, parameter: nn.Parameter, key: str, value: Tensor) -> Kept | None:
        side = key.partition("_")[0]
        if side in ("left", "right") or side.startswith("dimension"):
            if side not in self._sides.get(parameter, ()):
                return None
            n = self._shapes[parameter][dimension_of(side)]
            return Kept((n, n), precise(parameter.dtype))
        if parameter not in self._sides or key == "step":
            return super()._kept_as(parameter, key, value)
        return Kept(self._shapes[parameter], precise(parameter.dtype))

    def _check_saved(self, saved: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, Sequence[int]]) -> None:
        super()._check_saved(saved, shapes)
        for name, p in self._named_parameters().items():
            for side in self._sides.get(p, ()):
                if saved[name] and f"{side}_covariance" not in saved[name]:
                    what = f"the state_dict has no {side} factor of parameter {name!r}, which this optimizer keeps"
                    raise ValueError(f"{what}: was it made with other options?")

    def coverage(self) -> dict[str, str]:
        """Parameter name → the matrices' rule (and which side of it alone), the fallback, or ``"frozen"``."""
        said = {}
        for p, sides in self._sides.items():
            if not sides:
                continue
            too_long = [n for n in self._shapes[p] if n > self._max_dimension]
            known = f"{sides[0]} side" if len(self._shapes[p]) == 2 else " and ".join(sides)
            note = f", {known} only: {too_long[0]} > max_dimension {self._max_dimension}" if too_long else ""
            said[p] = self._treatment + note
        return self._coverage(self._fallback, said)


def shape_of(shape: Sequence[int], dimensions: Dimensions, max_dimension: int) -> tuple[int, ...]:
    """What a parameter of some shape is taken for.

    Args:
        shape: the parameter's.
        dimensions: ``matrix``: (first dimension, product of the others). ``each``: its own dimensions. ``merged``:
            these, neighbours merged as :func:`merged` does.
        max_dimension: the longest that dimensions are merged to.

    Returns:
        Two or more dimensions: a vector, and what is merged to one, is one column.
    """
    own = tuple(shape)
    if len(own) >= 2 and dimensions == "matrix":
        return own[0], math.prod(own[1:])
    if len(own) >= 2 and dimensions == "merged":
        own = merged(own, max_dimension)
    return own if len(own) >= 2 else (math.prod(own), 1)


def merged(shape: Sequence[int], longest: int) -> tuple[int, ...]:
    """Neighbouring dimensions multiplied, from the first on, for as long as the product is at most ``longest``.

    It is ``merge_dims`` of SOAP's authors and ``merge_small_dims`` of distributed Shampoo's. Dimensions of length 1 are
    dropped.
    """
    found: list[int] = []
    for n in (n for n in shape if n != 1):
        if found and found[-1] * n <= longest:
            found[-1] *= n
        else:
            found.append(n)
    return tuple(found) or (1,)


def sides_of(shape: Sequence[int], max_dimension: int) -> tuple[Side, ...]:
    """The sides that have a factor: those longer than 1 (which would only scale) and not too long."""
    names = ("left", "right") if len(shape) == 2 else tuple(f"dimension{i}" for i in range(len(shape)))
    return tuple(side for side, length in zip(names, shape, strict=True) if 1 < length <= max_dimension)


def dimension_of(side: Side) -> int:
    """The number of a side's dimension."""
    return {"left": 0, "right": 1}[side] if side in ("left", "right") else int(side.removeprefix("dimension"))


def unfolded(tensor: Tensor, dimension: int) -> Tensor:
    """Rows of a dimension's length, one for every choice of the other indices: the factor is their Gram matrix."""
    return tensor.movedim(dimension, -1).reshape(-1, tensor.shape[dimension])


def multiply(left: Tensor | None, matrix: Tensor, right: Tensor | None) -> Tensor:
    """left · matrix · right; None is the identity."""
    product = matrix if left is None else left @ matrix
    return product if right is None else product @ right


def along_dimensions(tensor: Tensor, matrices: Mapping[int, Tensor]) -> Tensor:
    """The tensor with every vector along dimension i multiplied by ``matrices[i]``; a matrix X becomes M₀XM₁ᵀ."""
    if tensor.ndim == 2:
        right = matrices.get(1)
        return multiply(matrices.get(0), tensor, None if right is None else right.T)
    for dimension, M in matrices.items():
        tensor = torch.tensordot(M, tensor, dims=([1], [dimension])).movedim(0, dimension)
    return tensor.contiguous()
