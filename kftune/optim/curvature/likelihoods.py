"""Vectors to back-propagate from the output so that the layers' g have the Fisher's covariance.

For the per-example loss ℓ_n as a function of the output f_n, each function yields v with Σ over the yielded (or, for
``mc``, expectation over the drawn) of v vᵀ equal to the Hessian of ℓ_n, the model's Fisher:

* ``categorical``: softmax over the last dimension, mean over the T positions between the first and it:
  (1/T)(diag(p) − ppᵀ) for each position;
* ``gaussian``: (2/O)·I over all O outputs of an example;
* ``bernoulli``: diag(p(1 − p))/O.

``permuted`` is another thing: gradients towards the batch's own predictions, dealt to other examples (thesis, labels
"sampled" in its code). It and ``empirical``, the loss' own gradient, are brought to the same scale: where ℓ_n is the
mean of K negative log-likelihoods, the outer product of its gradient has 1/K of the Hessian for its expectation under
the model, so that the gradient is multiplied with √K. K is T for ``categorical``, O for ``bernoulli``, and 1 for
``gaussian``, whose ℓ_n as a whole is that of N(f_n, (O/2)·I).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Likelihood: TypeAlias = Literal["categorical", "gaussian", "bernoulli"]
"""The model's predictive distribution: ``categorical`` (logits, cross-entropy over classes in the last dimension),
``gaussian`` (``mse_loss(reduction="mean")``), ``bernoulli`` (logits, ``binary_cross_entropy_with_logits`` mean over
examples *and* outputs)."""
LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)

Fisher: TypeAlias = Literal["mc", "exact", "empirical", "permuted"]
FISHERS: tuple[str, ...] = get_args(Fisher)

GradientScale: TypeAlias = Literal["fisher", "loss"]
"""Whether gradients towards labels (``empirical``, ``permuted``) are in the Fisher's scale, or just the loss'."""


def output_vectors(
    output: Tensor,
    likelihood: Likelihood,
    fisher: Fisher,
    generator: torch.Generator,
    scale: GradientScale = "fisher",
) -> Iterator[Tensor]:
    """The v's of one batch, each of the output's shape: one for ``mc`` and ``permuted``, many for ``exact``.

    Args:
        output: (N, …) the model's output; logits for ``categorical`` and ``bernoulli``. (N,) is one output of each
            example.
        likelihood: the predictive distribution.
        fisher: ``mc``, ``exact`` or ``permuted``; the empirical Fisher is the loss' own gradient.
        generator: source of the drawn labels and permutations, on the output's device.
        scale: of ``permuted``.

    Raises:
        RuntimeError: there is no dimension of classes.
    """
    output = output.detach()
    if likelihood == "categorical" and output.dim() < 2:
        raise RuntimeError(
            f"likelihood 'categorical' takes the output's last dimension for classes and its first for examples, and "
            f"was given {tuple(output.shape)}: for one logit of each example say 'bernoulli'"
        )
    if fisher == "exact":
        yield from _hessian_roots(output, likelihood)
    elif fisher == "mc":
        # A grid of bfloat16 numbers has no room for many labels.
        precise = output.to(torch.promote_types(output.dtype, torch.float32))
        yield _drawn(precise, likelihood, generator).to(output.dtype)
    else:
        v = _permuted(output, likelihood, generator)
        factor = label_scale(output, likelihood, scale)
        yield v if factor == 1 else v * factor


def label_scale(output: Tensor, likelihood: Likelihood, scale: GradientScale) -> float:
    """√K, what a gradient of the loss of one example towards a label is multiplied with (see the module); or 1."""
    if scale == "loss" or likelihood == "gaussian":
        return 1.0
    return math.sqrt(_n_outputs(output) if likelihood == "bernoulli" else _n_positions(output))


def _n_outputs(output: Tensor) -> int:
    return output[0].numel()


def _n_positions(output: Tensor) -> int:
    return output[0].numel() // output.shape[-1]


def _uniform(output: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    # Uniform draws come one by one from the CPU's generator, so halves of a batch draw what the whole would.
    return torch.rand(shape, generator=generator, device=output.device, dtype=output.dtype)


def _drawn(output: Tensor, likelihood: Likelihood, generator: torch.Generator) -> Tensor:
    """Gradient of the loss with labels drawn from the model."""
    if likelihood == "gaussian":
        u = _uniform(output, output.shape, generator)
        tiny = torch.finfo(u.dtype).eps / 2
        normal = torch.erfinv(u.mul_(2).sub_(1).clamp_(min=tiny - 1, max=1 - tiny)).mul_(2**0.5)
        return normal.mul_((2 / _n_outputs(output)) ** 0.5)
    if likelihood == "bernoulli":
        p = torch.sigmoid(output)
        label = (_uniform(output, output.shape, generator) < p).to(p.dtype)
        return (p - label) * (1 / math.sqrt(_n_outputs(output)))
    p = torch.softmax(output, dim=-1)
    u = _uniform(output, (*output.shape[:-1], 1), generator)
    # Rounding can leave the last cumulated probability below u.
    chosen = (p.cumsum(dim=-1) <= u).sum(dim=-1, keepdim=True).clamp_(max=p.shape[-1] - 1)
    return p.scatter_add(-1, chosen, -torch.ones_like(u)) * (1 / math.sqrt(_n_positions(output)))


def _hessian_roots(output: Tensor, likelihood: Likelihood) -> Iterator[Tensor]:
    """One column of the root of every example's output Hessian at a time."""
    n_outputs = _n_outputs(output)
    if likelihood == "categorical":
        p = torch.softmax(output, dim=-1).flatten(1, -2) if output.dim() > 2 else torch.softmax(output, dim=-1)[:, None]
        scale = p.shape[1] ** -0.5
        for position in range(p.shape[1]):
            for label in range(p.shape[2]):
                v = torch.zeros_like(p)
                v[:, position] = p[:, position]
                v[:, position, label] -= 1
                yield (v * (scale * p[:, position, label].sqrt())[:, None, None]).view_as(output)
        return
    if likelihood == "gaussian":
        roots = torch.full_like(output, (2 / n_outputs) ** 0.5)
    else:
        p = torch.sigmoid(output)
        roots = (p * (1 - p) / n_outputs).sqrt()
    roots = roots.reshape(len(output), -1)  # one output of each example may have no dimension of its own
    for o in range(n_outputs):
        v = torch.zeros_like(roots)
        v[:, o] = roots[:, o]
        yield v.view_as(output)


def _permuted(output: Tensor, likelihood: Likelihood, generator: torch.Generator) -> Tensor:
    """Gradient of the loss with the batch's own predictions as labels, dealt out at random."""
    order = torch.randperm(len(output), generator=generator, device=output.device)
    if likelihood == "gaussian":
        return (output - output[order]) * (2 / _n_outputs(output))
    if likelihood == "bernoulli":
        label = (output[order] > 0).to(output.dtype)
        return (torch.sigmoid(output) - label) / _n_outputs(output)
    p = torch.softmax(output, dim=-1)
    label = output[order].argmax(dim=-1, keepdim=True)
    return p.scatter_add(-1, label, -torch.ones_like(p[..., :1])) / _n_positions(output)
