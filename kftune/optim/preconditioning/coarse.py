"""The coarse problem of two-level K-FAC: one unknown per layer (Tselepidis, Kohler, Orvieto 2020).

Summed over all pairs of parameters of layers i and j, the Kronecker-factored Fisher matrix is
[F_c]_ij = (1ᵀA_ij1)(1ᵀG_ij1) (their equation 7) with A_ij = mean ā_i ā_jᵀ and G_ij = mean g_i g_jᵀ. With the sums
α = 1ᵀā and γ = 1ᵀg of a layer's rows that is F_c = S_A ∘ S_G, [S_A]_ij = mean α_i α_j, [S_G]_ij = mean γ_i γ_j, made of
N numbers per layer without any A_ij or G_ij.

Where layers have T positions, α and γ are maps of N × T numbers. Two layers are compared on the common part of their
grids, each map sampled there by nearest neighbours:

    [S_A]_ij = Σ α_i α_j / √(R_i R_j)        [S_G]_ij = Σ γ_i γ_j / N        sums over examples and common positions

with R = N·T the rows of a layer. On equal grids these are the sums of A_ij, which averages over positions, and of G_ij,
which sums over them. On grids that are nested (8, 4, 2, 1) the samples are positions of the finer grid, S_A and S_G are
Gram matrices (the coarser map is zero elsewhere on the finer grid), and F_c is positive semi-definite as their
elementwise product; other sizes (7, 5, 3) can make it indefinite, and :func:`damped_inverse` clips its eigenvalues.

The paper's A_ij is a mean over the positions that layers i and j have in common:

    [S_A]_ij = Σ α_i α_j / R_ij                R_ij = N·T_ij, T_ij the common positions

which is more than the above by √(T_i T_j)/T_ij, and the same between equal grids. It is no Gram matrix on nested grids
either: of a map of 64 positions that is 0 but where it meets a single one, [S_A]_ii = α²/64 and [S_A]_ij = α·α_j. Such
an F_c is indefinite, and the clip of its eigenvalues is part of the method then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from kftune.optim.curvature.layers import ConvLayer, Layer
from kftune.optim.curvature.patches import patch_sums
from kftune.optim.linalg.decompositions import eigendecompositions
from kftune.optim.linalg.products import widest

CoarseMean: TypeAlias = Literal["own_positions", "common_positions"]
COARSE_MEANS: tuple[str, ...] = get_args(CoarseMean)


class Map(NamedTuple):
    """α or γ of one layer in one micro-batch.

    Attributes:
        values: (N, T).
        grid: the shape of the T positions, e.g. (H', W').
    """

    values: Tensor
    grid: tuple[int, ...]


class Moments(NamedTuple):
    """S_A or S_G, (L, L) in float64.

    Attributes:
        values: the entries; 0 for pairs that are not known.
        known: the pairs of layers that were seen together.
        counts: in how many statistics, as integers.
    """

    values: Tensor
    known: Tensor
    counts: Tensor


def moments_of(tensors: Mapping[str, Tensor], n: int, device: torch.device | None) -> Moments:
    """As they were saved; ``n`` is the number of statistics, of all pairs in a state from before they were counted."""
    values, known = tensors["values"].to(device), tensors["known"].to(device)
    counts = tensors["counts"].to(device) if "counts" in tensors else known * n
    return Moments(values, known, counts)


def input_sums(layer: Layer, a: Tensor) -> Tensor:
    """α of one use of a layer, (N, T): the sum of every row ā, the homogeneous 1 included. No patches are made."""
    if isinstance(layer, ConvLayer):
        sums = patch_sums(a[:, layer.inputs].to(layer.dtype), layer.window).flatten(1)
    else:
        sums = layer.input_rows(a).sum(dim=2, dtype=layer.dtype)
    return sums if layer.bias is None else sums + 1


def output_sums(layer: Layer, g: Tensor) -> Tensor:
    """γ of one use of a layer, (N, T): the sum of every row g."""
    return layer.output_rows(g).sum(dim=2, dtype=layer.dtype)


def by_example(name: str, sums: Tensor, positions: tuple[int, ...], n_examples: int) -> Map:
    """Row sums of one use of a layer as a map; of (examples · something) rows, the something is a position.

    Raises:
        RuntimeError: the rows do not belong to examples.
    """
    if len(sums) % n_examples:
        raise RuntimeError(
            f"two-level K-FAC pairs layers example by example: layer {name!r} was given {len(sums)} rows, which is no "
            f"multiple of the {n_examples} examples"
        )
    values = sums.reshape(n_examples, -1)
    return Map(values, positions if math.prod(positions) == values.shape[1] else (values.shape[1],))


def join(parts: Sequence[Map]) -> Map:
    """The maps of several uses of a module as one: over (use, position), or one long row if their grids differ."""
    if len(parts) == 1:
        return parts[0]
    values = torch.cat([part.values for part in parts], dim=1)
    grids = {part.grid for part in parts}
    return Map(values, (len(parts), *grids.pop()) if len(grids) == 1 else (values.shape[1],))


def cross_sums(maps: Sequence[Map]) -> Tensor:
    """(L, L) in float64: the products of two maps, summed over examples and the positions common to their grids.

    Args:
        maps: of L layers and the same N examples.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for i, grid in enumerate(_of_one_rank([own.grid for own in maps])):
        members.setdefault(grid, []).append(i)
    stacks = [torch.stack([maps[i].values.reshape(-1, *grid) for i in own]) for grid, own in members.items()]
    blocks = [torch.cat([_product(left, right) for right in stacks], dim=1) for left in stacks]
    place = {i: k for k, i in enumerate(i for own in members.values() for i in own)}
    order = torch.tensor([place[i] for i in range(len(maps))], device=blocks[0].device)
    return torch.cat(blocks)[order][:, order]


def common_positions(grids: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """T_ij, (L, L), of the grids of L layers."""
    of_rank = _of_one_rank(grids)
    return [[math.prod(map(min, one, other)) for other in of_rank] for one in of_rank]


def _of_one_rank(grids: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    rank = max(1, *(len(grid) for grid in grids))
    return [(1,) * (rank - len(grid)) + grid for grid in grids]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """(l, r) from stacks of maps (l, N, *grid) and (r, N, *grid')."""
    grid = [min(sizes) for sizes in zip(left.shape[2:], right.shape[2:], strict=True)]
    dtype = widest((left, right))
    return (_sample(left.to(dtype), grid).flatten(1) @ _sample(right.to(dtype), grid).flatten(1).T).double()


def _sample(stack: Tensor, grid: Sequence[int]) -> Tensor:
    """(l, N, *any) → (l, N, *grid), the position at ⌊i·size/new size⌋ for the i-th along every dimension."""
    for dim, new in enumerate(grid, start=2):
        size = stack.shape[dim]
        if new != size:
            stack = stack.index_select(dim, torch.arange(new, device=stack.device) * size // new)
    return stack


class CoarseSums:
    """Σ α_i α_j and Σ γ_i γ_j of one update, over any number of micro-batches and output vectors.

    Args:
        layers: their names.
        mean: what Σ α_i α_j is divided by: √(R_i R_j) (``own_positions``) or R_ij (``common_positions``).

    Attributes:
        n_examples: examples whose α were added.
    """

    def __init__(self, layers: Sequence[str], mean: CoarseMean = "own_positions") -> None:
        self._index = {name: i for i, name in enumerate(layers)}
        self._inputs: Moments | None = None
        self._gradients: Moments | None = None
        self._n_rows = [0] * len(layers)
        self._mean: CoarseMean = mean
        self._n_common: Tensor | None = None
        self.n_examples = 0

    def add_inputs(self, maps: Mapping[str, Map], n_examples: int) -> None:
        """Add α of one micro-batch."""
        self._inputs = self._added(self._inputs, maps)
        for name, own in maps.items():
            self._n_rows[self._index[name]] += own.values.numel()
        if self._mean == "common_positions" and maps:
            self._add_common(maps, n_examples)
        self.n_examples += n_examples

    def _add_common(self, maps: Mapping[str, Map], n_examples: int) -> None:
        """Add to R_ij."""
        if self._n_common is None:
            self._n_common = torch.zeros(2 * (len(self._index),), dtype=torch.float64)
        rows = torch.tensor([self._index[name] for name in maps])
        positions = torch.tensor(common_positions([own.grid for own in maps.values()]), dtype=torch.float64)
        self._n_common[rows[:, None], rows] += n_examples * positions

    def add_gradients(self, maps: Mapping[str, Map]) -> None:
        """Add γ of one micro-batch, for one output vector of the Fisher."""
        self._gradients = self._added(self._gradients, maps)

    def _added(self, total: Moments | None, maps: Mapping[str, Map]) -> Moments | None:
        if not maps:
            return total
        new = cross_sums(list(maps.values()))
        if total is None:
            shape = 2 * (len(self._index),)
            known = torch.zeros(shape, dtype=torch.bool, device=new.device)
            total = Moments(new.new_zeros(shape), known, known.long())
        rows = torch.tensor([self._index[name] for name in maps], device=new.device)
        total.values[rows[:, None], rows] += new
        total.known[rows[:, None], rows] = True
        total.counts[rows[:, None], rows] = 1
        return total

    def moments(self) -> tuple[Moments, Moments] | None:
        """(S_A, S_G) of this update; None if no layer was seen."""
        if self._inputs is None or self._gradients is None:
            return None
        return (
            self._inputs._replace(values=self._inputs.values / self._divisors(self._inputs.values)),
            self._gradients._replace(values=self._gradients.values / self.n_examples),
        )

    def _divisors(self, like: Tensor) -> Tensor:
        """√(R_i R_j), or R_ij; 1 where it is 0, as the sum is."""
        if self._n_common is not None:
            return self._n_common.clamp(min=1).to(like)
        roots = like.new_tensor(self._n_rows).clamp_(min=1).sqrt()
        return torch.outer(roots, roots)


def average(old: Moments | None, new: Moments, factor_decay: float) -> Moments:
    """d·old + (1 − d)·new, d = min(1 − 1/k, factor_decay) for the k-th value of a pair; an unseen pair stays."""
    if old is None:
        return new
    counts = old.counts + new.counts
    decays = (1 - 1 / counts.clamp(min=1).double()).clamp(max=factor_decay)
    both = torch.lerp(old.values, new.values, 1 - decays)
    values = torch.where(new.known, torch.where(old.known, both, new.values), old.values)
    return Moments(values, old.known | new.known, counts)


def damped_inverse(fisher: Tensor, damping: Tensor) -> Tensor:
    """(F_c + D)⁻¹ = D^{-½}(D^{-½}F_cD^{-½} + I)⁻¹D^{-½}, negative eigenvalues of D^{-½}F_cD^{-½} taken as 0.

    Args:
        fisher: F_c, (L, L); only the lower triangle is read.
        damping: the diagonal of D, (L,), positive.

    Raises:
        CurvatureError: F_c is not finite, or has no eigendecomposition.
    """
    root = damping.sqrt()
    (eigen,) = eigendecompositions(["damped coarse Fisher matrix"], [fisher / torch.outer(root, root)])
    basis = eigen.vectors / root[:, None]
    return (basis / (1 + eigen.values)) @ basis.T
