"""SOAP: Adam in Shampoo's eigenbasis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from kftune.optim.costs.matrixwise import soap_floor
from kftune.optim.curvature.likelihoods import Likelihood
from kftune.optim.entry import OptimizerEntry
from kftune.optim.linalg.eigenspaces import Span, share_
from kftune.optim.matrixwise.optimizer import Dimensions, MatrixwiseOptimizer, Side, along_dimensions, dimension_of
from kftune.optim.matrixwise.roots import EigenBasis, eigenbases, iterated_bases
from kftune.optim.updates.adam import adam_directions, adam_state, shared_adam_direction
from kftune.space import Float, Int, Space


class SOAP(MatrixwiseOptimizer):
    """P = Q_L·Adam(Q_LᵀGQ_R)·Q_Rᵀ for every matrix; W ← (1 − lr·weight_decay)·W − lr·P.

    Vyas et al.: SOAP: improving and stabilizing Shampoo using Adam, 2024, algorithm 3. Q_L and Q_R are the eigenvectors
    of the averages L of GGᵀ and R of GᵀG: by eigendecomposition from a matrix's first gradient, then by one step of
    orthogonal iteration (algorithm 4) every ``inverses_every`` updates, for the updates after. Where the basis changes,
    Adam's averaged gradient is carried over exactly; the averaged squares stay with their columns.

    A parameter's first gradient gives only its basis: the parameter stays as it is, so all of a usual network in the
    first update. A parameter with two or more dimensions is one matrix, (d_o, d_i·k·k) for Conv2d. A side longer than
    ``max_dimension``, or of length 1, keeps the identity as its basis. Vectors are updated by AdamW with the same
    hyperparameters, from the second gradient on too.

    Where L or R has a null space (a gap above what is zero up to rounding shows it), any basis of it is as good: its
    columns share their averaged squares, the mean, and before the next iteration become the eigenvectors in it of what
    L or R is by then. So the update depends on the data alone.

    Args:
        model: the network.
        lr: learning rate.
        beta1: decay of the gradient's running average, in [0, 1).
        beta2: decay of the squared gradient's running average, in [0, 1).
        eps: added to the root of the latter.
        factor_decay: weight on the old L and R, in [0, 1]; None for ``beta2``, as in the paper.
        inverses_every: updates between two refreshments of the basis.
        max_dimension: the longest side that gets a basis; 0 for none, which is AdamW.
        precondition_1d: whether vectors get a basis too, as matrices of one column.
        dimensions: ``matrix``, as said; ``each``: of more than two dimensions every one has its own basis, as in the
            authors' program: of three, P = Adam(G ×₁Q₁ᵀ ×₂Q₂ᵀ ×₃Q₃ᵀ) ×₁Q₁ ×₂Q₂ ×₃Q₃, Qᵢ the eigenvectors of the
            average of G_(i)G_(i)ᵀ with G_(i) unfolded along i; ``merged``, their ``merge_dims``: neighbouring
            dimensions, from the first on, are one where their product is at most ``max_dimension`` (matrices, too, can
            become a vector).
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
        lr: float = 3e-3,
        beta1: float = 0.95,
        beta2: float = 0.95,
        eps: float = 1e-8,
        factor_decay: float | None = None,
        inverses_every: int = 10,
        max_dimension: int = 10_000,
        precondition_1d: bool = False,
        dimensions: Dimensions = "matrix",
        weight_decay: float = 0.0,
        likelihood: Likelihood | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            model,
            {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay},
            factor_decay=beta2 if factor_decay is None else factor_decay,
            inverses_every=inverses_every,
            max_dimension=max_dimension,
            precondition_1d=precondition_1d,
            likelihood=likelihood,
            dimensions=dimensions,
            treatment="SOAP",
            fallback="AdamW",
        )

    def _new_state(self, gradient: Tensor) -> dict[str, Any]:
        return adam_state(gradient)

    def _update(self) -> None:
        matrices, others = self._matrices(), self._others()
        seen = {p: G for p, G in matrices.items() if self.state[p]["n_updates"] > 0}
        started = [p for p in others if self.state[p]]
        with self.phases.phase("statistics"):
            self._average_factors(matrices)
        new = [p for p in matrices if p not in seen]
        # n_updates counts the first gradient as well, which makes no update.
        due = [p for p in seen if (self.state[p]["n_updates"] - 1) % self._inverses_every == 0]
        first: list[EigenBasis] = []
        refreshed: list[tuple[EigenBasis, Tensor]] = []
        # They are for the updates after, but can fail: that must be known before Adam's averages change.
        if new or due:
            with self.phases.phase("inversion"):
                first, refreshed = self._first_bases(new), self._refreshed_bases(due)
        with self.phases.phase("preconditioning"):
            directions = self._directions(seen)
            self._check_directions(directions)
        if new or due:
            with self.phases.phase("inversion"):
                self._take_first_bases(new, first)
                self._change_bases(due, refreshed)
        with self.phases.phase("update"):
            self._move(directions)
            self._adamw(started)
            for p in others:
                if not self.state[p]:
                    self.state[p] = adam_state(p)

    def _directions(self, gradients: Mapping[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
        """P of each matrix; its state takes the gradient in."""
        directions: dict[nn.Parameter, Tensor] = {}
        for group, own in self._by_group(gradients):
            betas = {name: group[name] for name in ("beta1", "beta2", "eps")}
            rotated = {p: self._rotate(p, gradients[p]) for p in own}
            usual = [p for p in own if not any(self._null_spaces(p))]
            found = dict(
                zip(
                    usual,
                    adam_directions(
                        [rotated[p] for p in usual], self._copied_averages(usual), fused=group["fused"], **betas
                    ),
                    strict=True,
                )
            )
            for p in own:
                if p not in found:
                    found[p] = shared_adam_direction(rotated[p], self.state[p], self._shared(p), **betas)
            directions |= {p: self._rotate_back(p, found[p]) for p in own}
        return directions

    def _shared(self, parameter: nn.Parameter) -> Callable[[Tensor], None]:
        spans = self._null_spaces(parameter)
        return lambda square: share_(square, *spans)

    def _null_spaces(self, parameter: nn.Parameter) -> list[list[Span]]:
        """Along every dimension, what of the rotated gradient belongs to a null space of its factor."""
        spans: list[list[Span]] = [[] for _ in self._shapes[parameter]]
        for side in self._sides[parameter]:
            spans[dimension_of(side)] = _null_space(self._basis(parameter, side))
        return spans

    def _basis(self, parameter: nn.Parameter, side: Side) -> EigenBasis | None:
        """The basis of a side that has one."""
        state = self.state[parameter]
        if f"{side}_basis" not in state:
            return None
        vectors: Tensor = state[f"{side}_basis"]
        return EigenBasis(vectors, state.get(f"{side}_rank", len(vectors)))

    def _take_basis(self, parameter: nn.Parameter, side: Side, basis: EigenBasis) -> None:
        state = self.state[parameter]
        state[f"{side}_basis"] = basis.vectors
        state[f"{side}_rank"] = basis.rank

    def _bases(self, parameter: nn.Parameter) -> dict[int, Tensor]:
        """Dimension → Q."""
        found = {dimension_of(side): self._basis(parameter, side) for side in self._sides[parameter]}
        return {dimension: basis.vectors for dimension, basis in found.items() if basis is not None}

    def _rotate(self, parameter: nn.Parameter, matrix: Tensor) -> Tensor:
        """Q_Lᵀ · matrix · Q_R, or Qᵀ along every dimension."""
        return along_dimensions(matrix, {i: Q.T for i, Q in self._bases(parameter).items()})

    def _rotate_back(self, parameter: nn.Parameter, matrix: Tensor) -> Tensor:
        """Q_L · matrix · Q_Rᵀ, or Q along every dimension."""
        return along_dimensions(matrix, self._bases(parameter))

    def _factors(self, parameters: Iterable[nn.Parameter]) -> tuple[list[tuple[nn.Parameter, Side]], list[Tensor]]:
        keys = [(p, side) for p in parameters for side in self._sides[p]]
        return keys, [self.state[p][f"{side}_covariance"] for p, side in keys]

    def _first_bases(self, new: list[nn.Parameter]) -> list[EigenBasis]:
        keys, factors = self._factors(new)
        return eigenbases([self._label(p, side) for p, side in keys], factors)

    def _take_first_bases(self, new: list[nn.Parameter], bases: list[EigenBasis]) -> None:
        keys, _ = self._factors(new)
        for (p, side), basis in zip(keys, bases, strict=True):
            self._take_basis(p, side, basis)

    def _refreshed_bases(self, due: list[nn.Parameter]) -> list[tuple[EigenBasis, Tensor]]:
        """(basis, order) of every side."""
        keys, factors = self._factors(due)
        if not keys:
            return []
        old = [basis for p, side in keys if (basis := self._basis(p, side)) is not None]
        return iterated_bases([self._label(p, side) for p, side in keys], factors, old)

    def _change_bases(self, due: list[nn.Parameter], refreshed: list[tuple[EigenBasis, Tensor]]) -> None:
        keys, _ = self._factors(due)
        averages = {p: self._rotate_back(p, self.state[p]["exp_avg"]) for p in due}
        for (p, side), (basis, order) in zip(keys, refreshed, strict=True):
            state = self.state[p]
            self._take_basis(p, side, basis)
            state["exp_avg_sq"] = state["exp_avg_sq"].index_select(dimension_of(side), order)
        for p, average in averages.items():
            share_(self.state[p]["exp_avg_sq"], *self._null_spaces(p))
            self.state[p]["exp_avg"] = self._rotate(p, average).contiguous()


def _null_space(basis: EigenBasis | None) -> list[Span]:
    """The columns that span it; none if they are fewer than two, which are unique."""
    return [] if basis is None or basis.rank > len(basis.vectors) - 2 else [(basis.rank, len(basis.vectors))]


ENTRIES = (
    OptimizerEntry(
        name="soap",
        cls=SOAP,
        summary="Adam in the eigenbasis of Shampoo's factors",
        paper="Vyas et al.: SOAP: improving and stabilizing Shampoo using Adam, 2024",
        space=Space(
            {
                "lr": Float(low=1e-5, high=3e-2, log=True),
                "beta1": Float(low=0.5, high=0.99, log=True, complement=True),
                "beta2": Float(low=0.8, high=0.999, log=True, complement=True),
                "weight_decay": Float(low=1e-5, high=1.0, log=True),
                "batch_size": Int(low=16, high=1024, log=True),
            },
            {"inverses_every": 10},
        ),
        second_order=True,
        example={"lr": 0.03, "inverses_every": 5},
        invalid=(
            ({"lr": -1.0}, "lr must be in [0, inf), got -1.0"),
            ({"beta1": 1.0}, "beta1 must be in [0, 1), got 1.0"),
            ({"beta2": -0.1}, "beta2 must be in [0, 1), got -0.1"),
            ({"eps": 0.0}, "eps must be in (0, inf), got 0.0"),
            ({"factor_decay": 1.1}, "factor_decay must be in [0, 1], got 1.1"),
            ({"inverses_every": 0}, "inverses_every must be a whole number of at least 1, got 0"),
            ({"max_dimension": -1}, "max_dimension must be a whole number of at least 0, got -1"),
            ({"dimensions": "all"}, "dimensions must be one of matrix, each, merged, got 'all'"),
            ({"weight_decay": -0.1}, "weight_decay must be in [0, inf)"),
        ),
        floor=soap_floor,
    ),
)
