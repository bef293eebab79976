"""The clip of an update by the change it makes to the model's predictions, to second order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def kl_clip_factor(
    products: Sequence[Tensor], lrs: Sequence[float], kl_clip: float, *, absolute: bool = False
) -> Tensor:
    """ν = min(1, √(κ / Σ η²⟨P, V⟩)), over all layers together (Ba, Grosse, Martens 2017, section 5).

    The learning rate η is inside: after scaling, η²ν²Σ⟨P, V⟩ is at most κ, whatever the learning rate.

    Where layers are preconditioned together, a single ⟨P, V⟩ can be negative although their sum is not. With unequal
    learning rates the weighted sum then says nothing, and the sum of absolute values takes its place.

    Args:
        products: ⟨P, V⟩ of every layer; scalars.
        lrs: η of every layer.
        kl_clip: κ.
        absolute: whether to take absolute values in any case (Tselepidis et al. 2020, equation 10).

    Returns:
        A scalar on the device. It is nan where the update cannot be judged, so that the check of the directions refuses
        it: a sum is not finite, or it is not positive although its terms are too large for rounding to be the cause.
    """
    terms = torch.stack([lr**2 * product.to(products[0]) for product, lr in zip(products, lrs, strict=True)])
    bound = terms.abs().sum()
    total = bound if absolute or len(set(lrs)) > 1 else terms.sum()
    scale = torch.where(total > kl_clip, (kl_clip / total).sqrt(), torch.ones_like(total))
    # Terms that are small even without their signs need no clip, whatever their sum.
    judged = torch.isfinite(bound) & ((total > 0) | (bound <= kl_clip))
    return torch.where(judged, scale, torch.full_like(scale, torch.nan))


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """⟨V, V⟩ of tensors that are taken as they are; a scalar on the first one's device."""
    norms = torch._foreach_norm(list(tensors))
    return torch.stack([norm.to(norms[0]) for norm in norms]).square().sum()
