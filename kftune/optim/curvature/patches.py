"""What a convolution's output positions see of its input, as rows of a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Window:
    """The geometry of a two-dimensional convolution.

    Attributes:
        kernel: (kh, kw).
        stride: vertical and horizontal.
        dilation: vertical and horizontal.
        padding: left, right, top, bottom, as :func:`torch.nn.functional.pad` takes it.
        padding_mode: ``zeros``, ``reflect``, ``replicate`` or ``circular``.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    padding_mode: str

    @classmethod
    def of(cls, module: nn.Conv2d) -> Window:
        """The module's geometry."""
        kernel, dilation = _pair(module.kernel_size), _pair(module.dilation)
        if module.padding == "same":
            totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            before = [total // 2 for total in totals]
            after = [total - half for total, half in zip(totals, before, strict=True)]
        elif module.padding == "valid":
            before = after = [0, 0]
        else:
            before = after = [int(p) for p in module.padding]
        padding = (before[1], after[1], before[0], after[0])
        return cls(kernel, _pair(module.stride), dilation, padding, module.padding_mode)

    def pad(self, x: Tensor) -> Tensor:
        """(N, C, H, W) with the padding around it."""
        if not any(self.padding):
            return x
        return nn.functional.pad(x, self.padding, "constant" if self.padding_mode == "zeros" else self.padding_mode)

    def windows(self, x: Tensor) -> Tensor:
        """A view of padded input (N, C, H, W) as (C, kh, kw, N, H', W'); nothing is copied."""
        n, c, height, width = x.shape
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        out_h = (height - dh * (kh - 1) - 1) // sh + 1
        out_w = (width - dw * (kw - 1) - 1) // sw + 1
        n_stride, c_stride, h_stride, w_stride = x.stride()
        return x.as_strided(
            (c, kh, kw, n, out_h, out_w),
            (c_stride, h_stride * dh, w_stride * dw, n_stride, h_stride * sh, w_stride * sw),
            x.storage_offset(),
        )


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    return int(sizes[0]), int(sizes[1])


def patches(x: Tensor, window: Window) -> Tensor:
    """(N, C, H, W) → (N, H'·W', C·kh·kw), columns in the order of ``weight.flatten(1)``.

    The columns of the result are contiguous in memory, the rows are not: matrix products take that as it is.
    """
    n = len(x)
    columns = window.windows(window.pad(x)).reshape(-1, n, n_positions(x, window))
    return columns.permute(1, 2, 0)


def mean_patch(x: Tensor, window: Window) -> Tensor:
    """The mean over positions of :func:`patches`, (N, 1, C·kh·kw), without making them."""
    means = window.windows(window.pad(x)).mean(dim=(-2, -1))
    return torch.movedim(means, -1, 0).reshape(len(x), 1, -1)


def patch_sums(x: Tensor, window: Window) -> Tensor:
    """The sums over columns of :func:`patches`, as maps (N, H', W'), without making them: channels are summed first."""
    return window.windows(window.pad(x.sum(dim=1, keepdim=True))).sum(dim=(0, 1, 2))


def patch_total(x: Tensor, window: Window) -> Tensor:
    """The sum of all rows of :func:`patches` of all examples, (C·kh·kw,), without making them."""
    return window.windows(window.pad(x.sum(dim=0, keepdim=True))).sum(dim=(-3, -2, -1)).reshape(-1)


def n_positions(x: Tensor, window: Window) -> int:
    """H'·W' of an input (N, C, H, W)."""
    (kh, kw), (sh, sw), (dh, dw) = window.kernel, window.stride, window.dilation
    left, right, top, bottom = window.padding
    height, width = x.shape[2] + top + bottom, x.shape[3] + left + right
    return ((height - dh * (kh - 1) - 1) // sh + 1) * ((width - dw * (kw - 1) - 1) // sw + 1)
