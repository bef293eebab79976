"""Inverses of damped covariances by the rows they are made of, as pure numerics.

For Z of n rows, ZᵀZ = A or G (Sherman, Morrison, Woodbury; Tang et al. 2021, with Z = X/√N),

    (ZᵀZ + λI)⁻¹ = (1/λ)[I − Zᵀ(ZZᵀ + λI)⁻¹Z]   and   Z(ZᵀZ + λI)⁻¹ = (ZZᵀ + λI)⁻¹Z:

an n × n matrix is factorised in the place of a d × d one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from kftune.optim.curvature.layers import Layer
from kftune.optim.curvature.statistics import Statistics, WeightSharing
from kftune.optim.linalg.decompositions import damped_choleskys, solve_rows
from kftune.optim.linalg.factors import add_gram, symmetrize_
from kftune.optim.linalg.products import padded_zeros


class Sample(NamedTuple):
    """What A or G of one layer is made of.

    Attributes:
        matrix: Z, (n, d), or ZᵀZ itself, (d, d).
        is_covariance: which of them.
    """

    matrix: Tensor
    is_covariance: bool

    @property
    def d(self) -> int:
        """Side of A or G."""
        return self.matrix.shape[1]

    def covariance(self) -> Tensor:
        """A or G, (d, d)."""
        return self.matrix if self.is_covariance else self.matrix.T @ self.matrix


def by_rows(n: int, d: int, *, once: bool) -> bool:
    """Whether n rows serve better than a d × d matrix.

    A kept inverse is applied to a vector in 2d² operations, kept rows in 4nd: they pay up to n = d/2.
    """
    return n < d if once else 2 * n < d


def flops_of_a_row(n: int, d: int, *, once: bool) -> float:
    """Operations of :func:`apply` to one row, where the sample has n."""
    return (2.0 * n * (2 * d + n * once)) if by_rows(n, d, once=once) else 2.0 * d**2


Side: TypeAlias = dict[str, Tensor]
"""One side's inverse: ``inverse``, (d, d); or ``rows`` Z, ``solved`` (ZZᵀ + λI)⁻¹Z and ``damping`` λ. Where it is used
once, ``cholesky`` of ZᵀZ + λI; or ``rows``, ``gram_cholesky`` of ZZᵀ + λI and ``damping``."""


def reduced(sample: Sample, *, once: bool) -> tuple[Tensor, bool]:
    """(the matrix to factorise, whether it is ZZᵀ)"""
    if sample.is_covariance or not by_rows(len(sample.matrix), sample.d, once=once):
        return sample.covariance(), False
    return sample.matrix @ sample.matrix.T, True


def make_sides(
    names: Sequence[str],
    samples: Sequence[Sample],
    matrices: Sequence[tuple[Tensor, bool]],
    dampings: Sequence[Tensor],
    *,
    once: bool,
) -> list[Side]:
    """(ZᵀZ + λI)⁻¹ of several sides, in the form that :func:`apply` needs.

    Args:
        names: what each covariance is, for errors.
        samples: what they are made of.
        matrices: :func:`reduced` of the samples.
        dampings: λ of each, scalars on the device.
        once: whether they will be used for a single update.

    Raises:
        CurvatureError: if a matrix has no Cholesky factor.
    """
    factors = damped_choleskys(names, [matrix for matrix, _ in matrices], dampings)
    sides: list[Side] = []
    for sample, (_, is_gram), damping, factor in zip(samples, matrices, dampings, factors, strict=True):
        if is_gram and once:
            sides.append({"rows": sample.matrix, "gram_cholesky": factor, "damping": damping})
        elif is_gram:
            solved = torch.cholesky_solve(sample.matrix, factor)
            sides.append({"rows": sample.matrix, "solved": solved, "damping": damping})
        else:
            sides.append({"cholesky": factor} if once else {"inverse": torch.cholesky_inverse(factor)})
    return sides


def apply(vectors: Tensor, side: Mapping[str, Tensor], *, own: bool = False) -> Tensor:
    """X(ZᵀZ + λI)⁻¹ for the rows X, (m, d).

    Args:
        vectors: X.
        side: see :data:`Side`.
        own: whether X is a multiple of Z.
    """
    if "inverse" in side:
        return vectors @ side["inverse"]
    if "cholesky" in side:
        return solve_rows(vectors, side["cholesky"])
    if "gram_cholesky" in side and own:
        return torch.cholesky_solve(vectors, side["gram_cholesky"])
    products = vectors @ side["rows"].T
    if "solved" in side:
        inside = products @ side["solved"]
    else:
        inside = solve_rows(products, side["gram_cholesky"]) @ side["rows"]
    return (vectors - inside).div_(side["damping"])


class _Gathering:
    """Rows of one side, until there are d of them; from then on their Gram matrix."""

    def __init__(self, d: int) -> None:
        self._d = d
        self._parts: list[Tensor] = []
        self._total: Tensor | None = None
        self.n = 0

    def add(self, rows: Tensor) -> None:
        """Take (n, d) rows, which nobody else will change."""
        self.n += len(rows)
        self._parts.append(rows)
        if self.n >= self._d:
            if self._total is None:
                self._total = padded_zeros(self._d, self._d, like=rows)
            for part in self._parts:
                add_gram(self._total, part)
            self._parts = []

    def sample(self, scale: float) -> Sample:
        """Of ``scale``·(sum of outer products)."""
        if self._total is not None:
            return Sample(symmetrize_(self._total * scale), is_covariance=True)
        return Sample(torch.cat(self._parts) * scale**0.5, is_covariance=False)


class RowStatistics(Statistics):
    """As :class:`Statistics`, but by rows where a side of a layer has fewer of them than entries."""

    def __init__(self, layers: Iterable[Layer], sharing: WeightSharing = "expand") -> None:
        super().__init__(layers, sharing)
        self._of_inputs: dict[str, _Gathering] = {}
        self._of_gradients: dict[str, _Gathering] = {}

    def add_input(self, name: str, a: Tensor) -> None:
        """Add the module's input at one use of a layer."""
        layer = self._layers[name]
        rows = self._input_rows(layer, a)
        # A copy in any case: the caller may write the next micro-batch into the same memory.
        rows = rows.clone() if layer.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self._of_inputs.setdefault(name, _Gathering(layer.d_A)).add(rows)

    def add_gradient(self, name: str, g: Tensor) -> None:
        """Add the gradient by the module's output at one use of a layer."""
        layer = self._layers[name]
        self._of_gradients.setdefault(name, _Gathering(layer.d_G)).add(self._gradient_rows(layer, g))

    def input_samples(self) -> dict[str, Sample]:
        """Layer → what A is made of, for the layers that were used. Consumes the sums."""
        found, self._of_inputs = self._of_inputs, {}
        return {name: gathering.sample(1 / gathering.n) for name, gathering in found.items()}

    def gradient_samples(self) -> dict[str, Sample]:
        """Layer → what G is made of, for the layers that were used. Consumes the sums."""
        found, self._of_gradients = self._of_gradients, {}
        scale = self.gradient_scale**2 / self.n_examples
        return {name: gathering.sample(scale) for name, gathering in found.items()}

    def input_covariances(self) -> dict[str, Tensor]:
        """Layer → A of this update. Consumes the sums."""
        return {name: sample.covariance() for name, sample in self.input_samples().items()}

    def gradient_covariances(self) -> dict[str, Tensor]:
        """Layer → G of this update. Consumes the sums."""
        return {name: sample.covariance() for name, sample in self.gradient_samples().items()}
