"""Examples as tensors, and what is counted over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["share_correct", "to_device"]


def to_device(
    images: Any, labels: Any, *, device: torch.device, dtype: torch.dtype, scale: int
) -> tuple[Tensor, Tensor]:
    """Flattened images (n, pixels) in [0, 1] and labels (n,) of int64 as tensors on ``device``.

    Args:
        images: array (n, …) of whole numbers in {0, …, scale}.
        labels: array (n,) of class numbers.
        device: where the tensors go.
        dtype: of the images.
        scale: the images' largest possible value.
    """
    pixels = torch.tensor(images, device=device).flatten(start_dim=1).to(dtype) / scale
    return pixels, torch.tensor(labels, dtype=torch.int64, device=device)


def share_correct(output: Tensor, targets: Tensor) -> Tensor:
    """Share of rows of ``output`` (n, classes) whose largest entry is the class in ``targets`` (n,), a scalar."""
    return (output.argmax(dim=-1) == targets).to(output.dtype).mean()
