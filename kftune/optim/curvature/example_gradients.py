"""Gradients of single examples, whose outer products make a layer's block of the Fisher; pure numerics.

The gradient of example n in direction c is the matrix j_cn = Σ_t g_cnt ā_ntᵀ over the T positions of the layer: the
C output vectors of the Fisher (1 for drawn labels, one per output for the exact one) carry their own weights, so the
layer's block is F = (1/N) Σ_cn vec(j_cn) vec(j_cn)ᵀ. Kept in factors, a product with F costs 4·N·T·d_A·d_G operations
for any C; written out, 4·C·N·d_A·d_G.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kftune.optim.curvature.rows import Rows

_CHUNK = 2**22  # entries of a temporary of gram()


class ExampleGradients(ABC):
    """The j_cn of one layer. Vectors over (c, n) are flat, of C·N entries, c first."""

    @property
    @abstractmethod
    def n_examples(self) -> int:
        """N."""

    @property
    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What :func:`from_tensors` makes it of."""

    @abstractmethod
    def products(self, X: Tensor) -> Tensor:
        """⟨j_cn, X⟩ for X of (d_G, d_A)."""

    @abstractmethod
    def combination(self, c: Tensor) -> Tensor:
        """Σ c_cn·j_cn, (d_G, d_A)."""

    @abstractmethod
    def gram(self) -> Tensor:
        """⟨j_cn, j_c'n'⟩, (C·N, C·N)."""

    @abstractmethod
    def written_out(self) -> WrittenGradients:
        """The same as matrices."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> ExampleGradients:
        """The same in another precision."""

    def fisher_product(self, X: Tensor) -> Tensor:
        """F X = (1/N) Σ ⟨j, X⟩ j, (d_G, d_A)."""
        return self.combination(self.products(X) / self.n_examples)


@dataclass(frozen=True, eq=False)
class WrittenGradients(ExampleGradients):
    """The matrices themselves.

    Attributes:
        matrices: (C, N, d_G, d_A).
    """

    matrices: Tensor

    @property
    def n_examples(self) -> int:
        """N."""
        return self.matrices.shape[1]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """``matrices``."""
        return {"matrices": self.matrices}

    def products(self, X: Tensor) -> Tensor:
        """⟨j_cn, X⟩."""
        return self.matrices.flatten(2).flatten(0, 1) @ X.flatten()

    def combination(self, c: Tensor) -> Tensor:
        """Σ c_cn·j_cn."""
        return (c @ self.matrices.flatten(2).flatten(0, 1)).view(self.matrices.shape[2:])

    def gram(self) -> Tensor:
        """⟨j_cn, j_c'n'⟩."""
        rows = self.matrices.flatten(2).flatten(0, 1)
        return rows @ rows.T

    def written_out(self) -> WrittenGradients:
        """Itself."""
        return self

    def to(self, dtype: torch.dtype) -> WrittenGradients:
        """The same in another precision."""
        return WrittenGradients(self.matrices.to(dtype))


@dataclass(frozen=True, eq=False)
class FactoredGradients(ExampleGradients):
    """Rows ā and g, the rows ā shared by all C directions.

    Attributes:
        inputs: ā, (N, T, d_A).
        gradients: g, (C, N, T, d_G).
    """

    inputs: Tensor
    gradients: Tensor

    @property
    def n_examples(self) -> int:
        """N."""
        return len(self.inputs)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """``inputs`` and ``gradients``."""
        return {"inputs": self.inputs, "gradients": self.gradients}

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """(C, N, T, d_A, d_G)."""
        c, n, t, d_G = self.gradients.shape
        return c, n, t, self.inputs.shape[2], d_G

    @property
    def _multiplies_gradients(self) -> bool:
        """Whether EX, and not ĀXᵀ, is the smaller of the two ways to the same number."""
        c, _, _, d_A, d_G = self.sizes
        return c == 1 and d_A < d_G

    def products(self, X: Tensor) -> Tensor:
        """Σ_t gᵀXā."""
        _, n, t, d_A, d_G = self.sizes
        if self._multiplies_gradients:
            return ((self.gradients.flatten(0, 2) @ X).view(n, t, d_A) * self.inputs).sum(dim=(1, 2))
        mapped = (self.inputs.flatten(0, 1) @ X.T).view(n, t, d_G)
        return (mapped * self.gradients).sum(dim=(2, 3)).flatten()

    def combination(self, c: Tensor) -> Tensor:
        """(Σ_c c_cn·g_cnt)ᵀā_nt, summed over n and t."""
        weights = c.view(*self.gradients.shape[:2], 1, 1)
        if self._multiplies_gradients:
            return self.gradients.flatten(0, 2).T @ (weights[0] * self.inputs).flatten(0, 1)
        return (weights * self.gradients).sum(dim=0).flatten(0, 1).T @ self.inputs.flatten(0, 1)

    def gram(self) -> Tensor:
        """Σ over positions t, t' of (ā·ā')(g·g'), or from the matrices, whichever takes fewer operations."""
        c, n, t, d_A, d_G = self.sizes
        by_positions = (n * t) ** 2 * d_A + (c * n * t) ** 2 * (d_G + 1)
        by_matrices = c * n * t * d_A * d_G + (c * n) ** 2 * d_A * d_G
        return self._gram_by_positions() if by_positions <= by_matrices else self._gram_by_matrices()

    def _gram_by_positions(self) -> Tensor:
        """In blocks of examples, those of one triangle."""
        c, n, t, _, _ = self.sizes
        gram = self.inputs.new_empty(c, n, c, n)
        size = max(1, _CHUNK // (c * t) ** 2 // n)
        for start in range(0, n, size):
            own, end = slice(start, start + size), min(start + size, n)
            A = self.inputs[own].flatten(0, 1) @ self.inputs[:end].flatten(0, 1).T
            E = self.gradients[:, own].flatten(0, 2) @ self.gradients[:, :end].flatten(0, 2).T
            block = E.view(c, end - start, t, c, end, t) * A.view(end - start, t, 1, end, t)
            gram[:, own, :, :end] = block.sum(dim=(2, 5))
            gram[:, :end, :, own] = gram[:, own, :, :end].permute(2, 3, 0, 1).clone()
        return gram.view(c * n, c * n)

    def _gram_by_matrices(self) -> Tensor:
        """In strips of the matrices' rows."""
        c, n, _, d_A, d_G = self.sizes
        gram = self.inputs.new_zeros(c * n, c * n)
        size = max(1, _CHUNK // (c * n * d_A))
        for start in range(0, d_G, size):
            strip = self._matrices(slice(start, start + size)).flatten(2).flatten(0, 1)
            gram.addmm_(strip, strip.T)
        return gram

    def _matrices(self, outputs: slice) -> Tensor:
        """Some rows of all matrices; direction by direction, for a product over all would copy ā C times."""
        return torch.stack([torch.bmm(g[..., outputs].mT, self.inputs) for g in self.gradients])

    def written_out(self) -> WrittenGradients:
        """The same as matrices."""
        return WrittenGradients(self._matrices(slice(None)))

    def to(self, dtype: torch.dtype) -> FactoredGradients:
        """The same in another precision."""
        return FactoredGradients(self.inputs.to(dtype), self.gradients.to(dtype))


def from_tensors(tensors: Mapping[str, Tensor]) -> ExampleGradients:
    """Inverse of :attr:`ExampleGradients.tensors`; other keys are ignored."""
    if "matrices" in tensors:
        return WrittenGradients(tensors["matrices"])
    return FactoredGradients(tensors["inputs"], tensors["gradients"])


def concatenate(parts: Sequence[ExampleGradients]) -> ExampleGradients:
    """The examples of all parts. Fewer positions are filled up with zeros, which add nothing."""
    if len(parts) == 1:
        return parts[0]
    factored = [part for part in parts if isinstance(part, FactoredGradients)]
    if len(factored) < len(parts):
        return WrittenGradients(torch.cat([part.written_out().matrices for part in parts], dim=1))
    t = max(part.inputs.shape[1] for part in factored)
    return FactoredGradients(
        torch.cat([_with_positions(part.inputs, t) for part in factored]),
        torch.cat([_with_positions(part.gradients, t) for part in factored], dim=1),
    )


def _with_positions(rows: Tensor, t: int) -> Tensor:
    """(…, T, d) → (…, t, d)."""
    return rows if rows.shape[-2] == t else torch.nn.functional.pad(rows, (0, 0, 0, t - rows.shape[-2]))


class _Batch:
    """What one micro-batch showed; all layers of it have the same examples and directions.

    Layers whose gradients take less memory written out than in factors, those with many positions, are written out at
    once. With several directions, how many is not known at the first: there, only what is less for any number.
    """

    def __init__(self, one_direction: bool) -> None:
        self.n_examples = 0
        self.n_directions = 0
        self._one_direction = one_direction
        self._inputs: dict[str, Tensor] = {}  # of the layers that stay in factors
        self._found: dict[str, list[Tensor]] = {}

    def add(self, rows: Mapping[str, Rows], examples: slice, *, kept: bool) -> None:
        """Add one direction of all layers."""
        self.n_directions += 1
        for name, found in rows.items():
            inputs, gradients = found.inputs[examples], found.gradients[examples]
            self.n_examples = len(inputs)
            if name not in self._found and not self._is_smaller_written_out(inputs, gradients):
                # They may be a view of the batch itself, which may be filled anew.
                self._inputs[name] = inputs.clone() if kept else inputs
            own = gradients if name in self._inputs else torch.bmm(gradients.mT, inputs)
            self._found.setdefault(name, []).append(own)

    def _is_smaller_written_out(self, inputs: Tensor, gradients: Tensor) -> bool:
        t, d_A, d_G = inputs.shape[1], inputs.shape[2], gradients.shape[2]
        return d_A * d_G < t * (d_A + d_G) if self._one_direction else d_A < t

    def result(self) -> dict[str, ExampleGradients]:
        """Layer → its examples' gradients."""
        return {
            name: FactoredGradients(self._inputs[name], torch.stack(found))
            if name in self._inputs
            else WrittenGradients(torch.stack(found))
            for name, found in self._found.items()
        }


class ExampleGradientsSum:
    """Gathers the gradients of an update's examples from the rows of its micro-batches.

    Args:
        n_examples: only the first so many examples count; None for all.
        one_direction: whether :meth:`add` will be called only once for each micro-batch.
    """

    def __init__(self, n_examples: int | None = None, *, one_direction: bool) -> None:
        self._left = n_examples
        self._one_direction = one_direction
        self._batch = _Batch(one_direction)
        self._closed: list[tuple[int, int, dict[str, ExampleGradients]]] = []

    def begin_batch(self) -> None:
        """What is added from here on belongs to another micro-batch."""
        batch, self._batch = self._batch, _Batch(self._one_direction)
        if batch.n_examples:
            self._closed.append((batch.n_examples, batch.n_directions, batch.result()))
            if self._left is not None:
                self._left -= batch.n_examples

    def add(self, rows: Mapping[str, Rows], *, kept: bool = True) -> None:
        """Add one direction of all layers of the micro-batch.

        Args:
            rows: layer → what passed it.
            kept: whether :meth:`result`, or what comes of it, is used after the call of the optimizer that this is in.
        """
        if self._left != 0:
            self._batch.add(rows, slice(self._left), kept=kept)

    def result(self) -> dict[str, ExampleGradients]:
        """Layer → the gradients of all examples; zero where a layer was not used. Consumes what was gathered."""
        self.begin_batch()
        closed, self._closed = self._closed, []
        names = dict.fromkeys(name for _, _, found in closed for name in found)
        like = {name: next(found[name] for _, _, found in closed if name in found) for name in names}
        return {
            name: concatenate([found[name] if name in found else _zeros(like[name], c, n) for n, c, found in closed])
            for name in names
        }


def _zeros(like: ExampleGradients, n_directions: int, n_examples: int) -> ExampleGradients:
    """The gradients of examples that did not pass the layer."""
    if isinstance(like, FactoredGradients):
        _, _, _, d_A, d_G = like.sizes
        inputs = like.inputs.new_zeros(n_examples, 1, d_A)
        return FactoredGradients(inputs, inputs.new_zeros(n_directions, n_examples, 1, d_G))
    (matrices,) = like.tensors.values()
    return WrittenGradients(matrices.new_zeros(n_directions, n_examples, *matrices.shape[2:]))
