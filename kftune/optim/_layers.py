"""Layers that have a Kronecker-factored curvature block, and their parameters as one matrix."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kftune.optim._factors import add_gram, add_homogeneous_gram


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear map s = W a + b whose parameters are preconditioned together.

    Attributes:
        name: the module's name in the model.
        weight: W, (d_o, d_i).
        bias: b, (d_o,), or None if there is none or it is frozen.
    """

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None

    @property
    def d_A(self) -> int:  # noqa: N802  # the dimension of A
        """Side of A: d_i, and one more with a bias."""
        return self.weight.shape[1] + (self.bias is not None)

    @property
    def d_G(self) -> int:  # noqa: N802  # the dimension of G
        """Side of G: d_o."""
        return self.weight.shape[0]

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """W, and b if there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def join(self, tensors: dict[nn.Parameter, Tensor]) -> Tensor:
        """[W b] made of what stands for W and b, (d_G, d_A)."""
        weight = tensors[self.weight]
        if self.bias is None:
            return weight
        return torch.cat([weight, tensors[self.bias][:, None]], dim=1)

    def split(self, matrix: Tensor) -> dict[nn.Parameter, Tensor]:
        """Inverse of :meth:`join`."""
        if self.bias is None:
            return {self.weight: matrix}
        return {self.weight: matrix[:, :-1], self.bias: matrix[:, -1]}

    def add_input(self, total: Tensor, a: Tensor) -> int:
        """total += Σ ā āᵀ over all rows of a layer input (…, d_i); lower triangle only. Returns the number of rows."""
        rows = a.reshape(-1, a.shape[-1]).to(total.dtype)
        (add_gram if self.bias is None else add_homogeneous_gram)(total, rows)
        return len(rows)

    def add_gradient(self, total: Tensor, g: Tensor) -> None:
        """total += Σ g gᵀ over all rows of an output gradient (…, d_o); lower triangle only."""
        add_gram(total, g.reshape(-1, g.shape[-1]).to(total.dtype))


def find_layers(model: nn.Module) -> dict[str, tuple[nn.Module, Layer]]:
    """Name → (module, layer) for every linear module whose weight is trained and belongs to it alone.

    Only ``nn.Linear`` itself counts: a subclass may compute something else.
    """
    owners = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    found: dict[str, tuple[nn.Module, Layer]] = {}
    for name, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        own = {key: p for key, p in module.named_parameters() if p.requires_grad and owners[p] == 1}
        if "weight" in own:
            found[name] = (module, Layer(name, own["weight"], own.get("bias")))
    return found
