"""Dense curvature of small networks, straight from its definition: Jacobians of the model and Hessians of the loss."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

DTYPE = torch.float64


def make_loss(likelihood: str):
    """(output, target) → mean loss, as users write it."""
    return {
        "categorical": nn.functional.cross_entropy,
        "gaussian": nn.functional.mse_loss,
        "bernoulli": nn.functional.binary_cross_entropy_with_logits,
    }[likelihood]


def make_batch(likelihood: str, n: int, d_in: int, d_out: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random inputs and targets."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_in, generator=g, dtype=DTYPE)
    if likelihood == "categorical":
        return x, torch.randint(d_out, (n,), generator=g)
    y = torch.randn(n, d_out, generator=g, dtype=DTYPE)
    return x, (y > 0).to(DTYPE) if likelihood == "bernoulli" else y


def make_net(*sizes: int, activation: type[nn.Module] | None = nn.Tanh, bias: bool = True, seed: int = 0) -> nn.Module:
    """A multilayer perceptron in float64; without ``activation`` a deep linear network."""
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(itertools.pairwise(sizes)):
        modules.append(nn.Linear(d_in, d_out, bias=bias, dtype=DTYPE))
        if activation is not None and i < len(sizes) - 2:
            modules.append(activation())
    return nn.Sequential(*modules)


def make_closure(model: nn.Module, x: Tensor, y: Tensor, likelihood: str):
    """A kftune closure."""

    def closure() -> tuple[Tensor, Tensor]:
        output = model(x)
        return make_loss(likelihood)(output, y), output

    return closure


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def vec(matrix: Tensor) -> Tensor:
    """Column-stacking vec."""
    return matrix.T.reshape(-1)


def unvec(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(like.shape[1], like.shape[0]).T


def layer_gradient(module: nn.Linear | nn.Conv2d) -> Tensor:
    """[∇W ∇b] from ``.grad``, W as a matrix."""
    grad = module.weight.grad.flatten(1)
    return grad.clone() if module.bias is None else torch.cat([grad, module.bias.grad[:, None]], dim=1)


def layer_matrix(module: nn.Linear | nn.Conv2d) -> Tensor:
    """[W b], W as a matrix."""
    weight = module.weight.detach().flatten(1)
    return weight.clone() if module.bias is None else torch.cat([weight, module.bias.detach()[:, None]], dim=1)


def _one_example(model: nn.Module, name: str):
    """(matrix [W b] of layer ``name``, one input) → that example's output."""
    module = model.get_submodule(name)

    def forward(matrix: Tensor, x: Tensor) -> Tensor:
        weight = matrix if module.bias is None else matrix[:, :-1]
        own = {f"{name}.weight": weight.reshape(module.weight.shape)}
        if module.bias is not None:
            own[f"{name}.bias"] = matrix[:, -1]
        return functional_call(model, own, (x[None],))[0]

    return forward


def ggn_block(model: nn.Module, name: str, x: Tensor, y: Tensor, likelihood: str) -> Tensor:
    """(1/N) Σ_n J_nᵀ H_n J_n over vec[W b], H_n the Hessian of example n's loss by its output."""
    matrix, forward, loss = layer_matrix(model.get_submodule(name)), _one_example(model, name), make_loss(likelihood)
    jacobian = vmap(jacrev(forward), in_dims=(None, 0))(matrix, x)
    output = vmap(forward, in_dims=(None, 0))(matrix, x)
    curvature = vmap(jacrev(jacrev(lambda f, t: loss(f[None], t[None]))))(output, y)
    n, o = len(x), output[0].numel()
    J = jacobian.reshape(n, o, *matrix.shape).transpose(-1, -2).reshape(n, o, -1)
    return torch.einsum("nop,noq,nqr->pr", J, curvature.reshape(n, o, o), J) / n


def empirical_fisher_block(model: nn.Module, name: str, x: Tensor, y: Tensor, likelihood: str) -> Tensor:
    """(1/N) Σ_n of each example's gradient's outer product, over vec[W b], times the number of terms of its loss."""
    matrix, forward, loss = layer_matrix(model.get_submodule(name)), _one_example(model, name), make_loss(likelihood)

    def per_example(matrix: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return loss(forward(matrix, x)[None], y[None])

    gradients = vmap(jacrev(per_example), in_dims=(None, 0, 0))(matrix, x, y)
    rows = gradients.transpose(-1, -2).reshape(len(x), -1)
    n_terms = y[0].numel() if likelihood == "bernoulli" else 1
    return n_terms * rows.T @ rows / len(x)


def stored_factors(optimizer, name: str) -> tuple[Tensor, Tensor]:
    """(A, G) of a layer as they are saved."""
    state = optimizer.state_dict()["extra"]["layers"][name]
    return state["input_covariance"], state["gradient_covariance"]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()
