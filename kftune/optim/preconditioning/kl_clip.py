"""The clip of an update by the change it makes to the model's predictions, to second order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def kl_clip_factor(products: Sequence[Tensor], lrs: Sequence[float], kl_clip: float) -> Tensor:
    """ν = min(1, √(κ / Σ η²⟨P, V⟩)), over all layers together (Ba, Grosse, Martens 2017, section 5).

    The learning rate η is inside: after scaling, η²ν²Σ⟨P, V⟩ is at most κ, whatever the learning rate.

    Args:
        products: ⟨P, V⟩ of every layer; scalars.
        lrs: η of every layer.
        kl_clip: κ.

    Returns:
        A scalar on the device; 1 where the sum is not positive.
    """
    total = torch.stack([lr**2 * product for product, lr in zip(products, lrs, strict=True)]).sum()
    return torch.where(total > kl_clip, (kl_clip / total).sqrt(), torch.ones_like(total))
