"""The gradients that make up a Fisher, of all layers together, from dense Jacobians of single examples.

Here the parameters of a layer are the entries of [W b] row by row, and the layers follow each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from kftune.optim.curvature.likelihoods import output_vectors
from tests.optim._dense import DTYPE, layer_gradient, layer_matrix, make_loss


class Pooled(nn.Module):
    """Convolutions, strided and in groups, then the mean over positions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4, 3, padding=1, stride=2, dtype=DTYPE)
        self.second = nn.Conv2d(4, 4, 2, groups=2, bias=False, dtype=DTYPE)
        self.last = nn.Linear(4, 3, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))).mean(dim=(2, 3)))


class Sequence(nn.Module):
    """Layers at every position, one of them used twice, then the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4, dtype=DTYPE)
        self.twice = nn.Linear(4, 4, dtype=DTYPE)
        self.last = nn.Linear(4, 3, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        return self.last(h.mean(dim=1))


def images(n: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 6, 6, generator=g, dtype=DTYPE), torch.randint(3, (n,), generator=g)


def sequences(n: int, length: int = 5, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, length, 3, generator=g, dtype=DTYPE), torch.randint(3, (n,), generator=g)


def modules(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Module → [W b]; of a convolution in groups, the groups' matrices below each other."""
    return {name: layer_matrix(module).clone() for name, module in modules(model).items()}


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([layer_gradient(module).flatten() for module in modules(model).values()])


def flat_parameters(model: nn.Module) -> Tensor:
    return torch.cat([matrix.flatten() for matrix in matrices(model).values()])


def blocks(model: nn.Module) -> list[slice]:
    """The parameters of each layer; every group of a convolution is a layer."""
    found, start = [], 0
    for module in modules(model).values():
        n_groups = module.groups if isinstance(module, nn.Conv2d) else 1
        size = layer_matrix(module).numel() // n_groups
        for _ in range(n_groups):
            found.append(slice(start, start + size))
            start += size
    return found


def block_diagonal(model: nn.Module, matrix: Tensor) -> Tensor:
    found = torch.zeros_like(matrix)
    for own in blocks(model):
        found[own, own] = matrix[own, own]
    return found


def _joined(model: nn.Module, tensors: dict[str, Tensor], lead: tuple[int, ...]) -> Tensor:
    """Tensors by parameter, each (*lead, *its shape), as (*lead, all parameters)."""
    parts = []
    for name, module in modules(model).items():
        d_o = len(module.weight)
        part = tensors[f"{name}.weight"].reshape(*lead, d_o, -1)
        if module.bias is not None:
            part = torch.cat([part, tensors[f"{name}.bias"].reshape(*lead, d_o, 1)], dim=-1)
        parts.append(part.flatten(-2))
    return torch.cat(parts, dim=-1)


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(N, O, all parameters), O outputs of one example."""
    own = {name: p.detach() for name, p in model.named_parameters()}

    def one(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, own, (x[None],))[0].flatten()

    found = vmap(jacrev(one), in_dims=(None, 0))(own, x)
    return _joined(model, found, tuple(next(iter(found.values())).shape[:2]))


def ggn(model: nn.Module, x: Tensor, y: Tensor, likelihood: str) -> Tensor:
    """(1/N) Σ_n J_nᵀ H_n J_n over all parameters, H_n the Hessian of example n's loss."""
    J, loss = jacobian(model, x), make_loss(likelihood)
    output = model(x).detach()
    H = vmap(jacrev(jacrev(lambda f, t: loss(f[None], t[None]))))(output, y)
    n, o = len(x), J.shape[1]
    return torch.einsum("nop,noq,nqr->pr", J, H.reshape(n, o, o), J) / n


def drawn_fisher(model: nn.Module, x: Tensor, likelihood: str, seed: int) -> Tensor:
    """(1/N) Σ_n of outer products of the gradients for labels drawn with ``seed``."""
    output = model(x).detach()
    (v,) = output_vectors(output, likelihood, "mc", torch.Generator().manual_seed(seed))
    rows = torch.einsum("nop,no->np", jacobian(model, x), v.flatten(1))
    return rows.T @ rows / len(x)


def example_gradients(model: nn.Module, x: Tensor, y: Tensor, likelihood: str) -> Tensor:
    """(N, all parameters) gradients of each example's loss."""
    own, loss = {name: p.detach() for name, p in model.named_parameters()}, make_loss(likelihood)

    def one(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, own, (x[None],)), y[None])

    return _joined(model, vmap(grad(one), in_dims=(None, 0, 0))(own, x, y), (len(x),))


def fisher(model: nn.Module, x: Tensor, y: Tensor, likelihood: str, kind: str, *, seed: int = 0) -> Tensor:
    """The matrix that ``fisher=kind`` means, dense."""
    if kind == "exact":
        return ggn(model, x, y, likelihood)
    if kind == "mc":
        return drawn_fisher(model, x, likelihood, seed)
    rows = example_gradients(model, x, y, likelihood)
    return n_terms(model, x, likelihood) * rows.T @ rows / len(x)


def n_terms(model: nn.Module, x: Tensor, likelihood: str) -> int:
    """How many negative log-likelihoods the loss of an example is the mean of; here outputs have no positions."""
    return model(x)[0].numel() if likelihood == "bernoulli" else 1


def damped_solve(curvature: Tensor, damping: float, vector: Tensor) -> Tensor:
    return torch.linalg.solve(curvature + damping * torch.eye(len(curvature), dtype=DTYPE), vector)
