"""Residual networks for small images (He, Zhang, Ren, Sun: Deep residual learning for image recognition, 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu


class BasicBlock(nn.Module):
    """relu(x' + norm(conv(relu(norm(conv(x)))))) with 3 × 3 convolutions.

    The shortcut x' has no parameters ("option A"): where the block halves the resolution it takes every second pixel,
    and channels of zeros make up what the input lacks.

    Args:
        n_in: channels of the input.
        n_out: channels of the output, at least ``n_in``.
        stride: 2 halves the resolution.
    """

    def __init__(self, n_in: int, n_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self._stride = stride
        self._n_added = n_out - n_in

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, h, w) → (n, n_out, ⌈h/stride⌉, ⌈w/stride⌉)."""
        inner = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        shortcut = x if self._stride == 1 else x[:, :, :: self._stride, :: self._stride]
        if self._n_added:
            shortcut = pad(shortcut, (0, 0, 0, 0, self._n_added // 2, self._n_added - self._n_added // 2))
        return relu(shortcut + inner)


class ResidualNetwork(nn.Module):
    """A convolution, stages of basic blocks, the mean over positions, one linear layer.

    Every stage but the first halves the resolution. Weights come from torch's global generator, He-normal (He et al.
    2015, eq. 10); the linear layer's bias is zero, normalisations begin as the identity.

    Args:
        n_channels: of the images.
        widths: channels of the stages, not decreasing.
        n_blocks: blocks of each stage.
        n_classes: outputs.
    """

    def __init__(self, *, n_channels: int, widths: Sequence[int], n_blocks: int, n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_channels, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        blocks = [BasicBlock(widths[0], widths[0], stride=1) for _ in range(n_blocks)]
        for n_in, n_out in pairwise(widths):
            blocks.append(BasicBlock(n_in, n_out, stride=2))
            blocks += [BasicBlock(n_out, n_out, stride=1) for _ in range(n_blocks - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], n_classes)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_channels, h, w) → (n, n_classes)."""
        features = self.blocks(relu(self.norm(self.conv(x))))
        output: Tensor = self.head(torch.mean(features, dim=(2, 3)))
        return output


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
