"""Layers that have a Kronecker-factored curvature block: their parameters as one matrix, their inputs as rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kftune.optim.curvature.correlations import add_correlations, can_correlate
from kftune.optim.curvature.patches import Window, n_positions, patch_total, patches
from kftune.optim.linalg.gram import add_gram, add_homogeneous_gram
from kftune.optim.linalg.products import precise

_CHUNK = 2**20  # entries of the patches that are made at a time: they stay in the cache


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """A linear map s = W a + b of rows a, whose parameters are preconditioned together.

    A convolution maps the patches of its input; one with groups is as many layers as it has groups, each with its own
    rows of the module's weight.

    Attributes:
        name: the module's name in the model; ``name[j]`` for group j.
        weight: the module's, (d_o, …) if the layer is all of it.
        bias: the module's, or None if there is none or it is frozen.
        outputs: which rows of weight and bias are the layer's.
    """

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    outputs: slice

    least_ndim: ClassVar[int]
    """Dimensions of the module's input, the examples' own included."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of curvature: the weight's, float32 at least, for which there are decompositions."""
        return precise(self.weight.dtype)

    @property
    def d_A(self) -> int:  # noqa: N802  # the dimension of A
        """Side of A: d_i, and one more with a bias."""
        return math.prod(self.weight.shape[1:]) + (self.bias is not None)

    @property
    def d_G(self) -> int:  # noqa: N802  # the dimension of G
        """Side of G: d_o."""
        return len(range(*self.outputs.indices(len(self.weight))))

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The module's weight, and its bias if there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def join(self, tensors: Mapping[nn.Parameter, Tensor]) -> Tensor:
        """[W b] made of what stands for the module's weight and bias, (d_G, d_A), in the precision of curvature."""
        weight = tensors[self.weight][self.outputs].flatten(1).to(self.dtype)
        if self.bias is None:
            return weight
        return torch.cat([weight, tensors[self.bias][self.outputs, None].to(self.dtype)], dim=1)

    @abstractmethod
    def input_rows(self, a: Tensor) -> Tensor:
        """The module's input as (N, T, d_i): T rows (positions) of N examples."""

    @abstractmethod
    def output_rows(self, s: Tensor) -> Tensor:
        """The module's output, or the gradient by it, as (N, T, d_G)."""

    def examples_first(self, t: Tensor, n_examples: int) -> Tensor:
        """The module's input, output or gradient with its examples in the first dimension."""
        return t

    @abstractmethod
    def n_rows(self, s: Tensor) -> int:
        """N·T of one use of the module, by its output."""

    @abstractmethod
    def positions(self, s: Tensor) -> tuple[int, ...]:
        """The shape of the T positions of one use of the module, by its output; () if T is 1."""

    def add_input_gram(self, total: Tensor, a: Tensor) -> int:
        """total += Σ ā āᵀ over all rows of the module's input; lower triangle only. Returns the number of rows.

        Args:
            total: (d_A, d_A).
            a: the module's input.
        """
        rows = self.input_rows(a)
        rows = rows.reshape(-1, rows.shape[-1]).to(total.dtype)
        (add_gram if self.bias is None else add_homogeneous_gram)(total, rows)
        return len(rows)

    def homogeneous_rows(self, a: Tensor) -> Tensor:
        """ā of the module's input, (N, T, d_A)."""
        rows = self.input_rows(a)
        return rows if self.bias is None else torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)


class LinearLayer(Layer):
    """``nn.Linear``: everything between the first and the last dimension of its input is a position."""

    least_ndim = 2

    def examples_first(self, t: Tensor, n_examples: int) -> Tensor:
        """(T, N, …, d) → (N, T, …, d), where T is not N; all else as it is."""
        is_second = t.ndim > 2 and len(t) != n_examples and t.shape[1] == n_examples
        return t.transpose(0, 1) if is_second else t

    def input_rows(self, a: Tensor) -> Tensor:
        """(N, …, d_i) → (N, T, d_i)."""
        return a.reshape(len(a), -1, a.shape[-1])

    def output_rows(self, s: Tensor) -> Tensor:
        """(N, …, d_o) → (N, T, d_o)."""
        return s.reshape(len(s), -1, s.shape[-1])

    def n_rows(self, s: Tensor) -> int:
        """Entries of all dimensions but the last."""
        return s.numel() // s.shape[-1]

    def positions(self, s: Tensor) -> tuple[int, ...]:
        """Dimensions between the first and the last."""
        return tuple(s.shape[1:-1])


@dataclass(frozen=True, eq=False)
class ConvLayer(Layer):
    """``nn.Conv2d``, or one group of it (Grosse, Martens 2016): a row is what one output position sees.

    Attributes:
        window: kernel, stride, padding and dilation.
        inputs: which input channels are the layer's.
    """

    least_ndim = 4

    window: Window
    inputs: slice

    def input_rows(self, a: Tensor) -> Tensor:
        """(N, C, H, W) → (N, H'·W', C·kh·kw)."""
        return patches(a[:, self.inputs], self.window)

    def add_input_gram(self, total: Tensor, a: Tensor) -> int:
        """As for any layer, by correlations of the image where that is possible, else by patches of a few images."""
        n_rows = len(a) * n_positions(a, self.window)
        if not can_correlate(self.window) or min(a.shape[2:]) < 2:
            per_image = n_rows // len(a) * (self.d_A - (self.bias is not None))
            for few in torch.split(a, max(1, _CHUNK // max(1, per_image))):
                super().add_input_gram(total, few)
            return n_rows
        images = a[:, self.inputs].to(total.dtype)
        d = self.d_A - (self.bias is not None)
        add_correlations(total[:d, :d], images)
        if self.bias is not None:
            total[d, :d] += patch_total(images, self.window)
            total[d, d] += n_rows
        return n_rows

    def output_rows(self, s: Tensor) -> Tensor:
        """(N, C, H', W') → (N, H'·W', C)."""
        return s[:, self.outputs].flatten(2).transpose(1, 2)

    def n_rows(self, s: Tensor) -> int:
        """N·H'·W'."""
        return s.numel() // s.shape[1]

    def positions(self, s: Tensor) -> tuple[int, ...]:
        """(H', W')."""
        return tuple(s.shape[2:])


def fold(rows: Tensor, n_examples: int, name: str) -> Tensor:
    """Rows of a layer, (N', T', d), by example: (N, T, d), where N' is N times something, the something a position.

    So are sequences that a model flattens, (N·T, d) with the positions of an example in a row.

    Args:
        rows: of one use of the layer.
        n_examples: N.
        name: of the layer, for errors.

    Raises:
        RuntimeError: the rows do not belong to examples.
    """
    if len(rows) == n_examples:
        return rows
    if n_examples == 0 or len(rows) % n_examples:
        raise RuntimeError(
            f"layer {name!r} was given {len(rows)} inputs, which is no multiple of the {n_examples} "
            "examples whose output the closure returned: which of them belong to which example is not known"
        )
    return rows.reshape(n_examples, -1, rows.shape[-1])


def find_layers(model: nn.Module) -> dict[str, tuple[nn.Module, list[Layer]]]:
    """Name → (module, its layers) for every module that has some, and whose weight is trained and belongs to it alone.

    Only ``nn.Linear`` and ``nn.Conv2d`` themselves count: a subclass may compute something else.
    """
    owners = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    found: dict[str, tuple[nn.Module, list[Layer]]] = {}
    for name, module in model.named_modules():
        own = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad and owners[p] == 1}
        if "weight" in own and type(module) is nn.Linear:
            found[name] = module, [LinearLayer(name, own["weight"], own.get("bias"), slice(None))]
        elif "weight" in own and type(module) is nn.Conv2d:
            found[name] = module, _groups(name, module, own["weight"], own.get("bias"))
    return found


def _groups(name: str, module: nn.Conv2d, weight: nn.Parameter, bias: nn.Parameter | None) -> list[Layer]:
    window = Window.of(module)
    if module.groups == 1:
        return [ConvLayer(name, weight, bias, slice(None), window, slice(None))]
    n_out, n_in = module.out_channels // module.groups, module.in_channels // module.groups
    return [
        ConvLayer(
            f"{name}[{j}]",
            weight,
            bias,
            slice(j * n_out, (j + 1) * n_out),
            window,
            slice(j * n_in, (j + 1) * n_in),
        )
        for j in range(module.groups)
    ]


def split(layers: Iterable[Layer], matrices: Mapping[str, Tensor]) -> dict[nn.Parameter, Tensor]:
    """Inverse of :meth:`Layer.join` for all layers together.

    Args:
        layers: all layers of every module concerned, the groups of one module in order.
        matrices: layer → (d_G, d_A); layers that are not named are left out.

    Returns:
        Parameter → tensor of its shape and type.
    """
    parts: dict[nn.Parameter, list[Tensor]] = {}
    for layer in layers:
        if layer.name in matrices:
            matrix = matrices[layer.name]
            weight = matrix if layer.bias is None else matrix[:, :-1]
            parts.setdefault(layer.weight, []).append(weight)
            if layer.bias is not None:
                parts.setdefault(layer.bias, []).append(matrix[:, -1])
    joined = {p: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for p, tensors in parts.items()}
    return {p: tensor.reshape(p.shape).to(p.dtype) for p, tensor in joined.items()}
