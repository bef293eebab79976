"""Small networks with the layers that real ones have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class ResidualBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride=stride) if stride > 1 or n_in != n_out else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


class TinyResNet(nn.Module):
    """Images (N, 2, 6, 6) → 3 logits: strides, groups, BatchNorm, in-place additions and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(4, 4, 1), ResidualBlock(4, 6, 2, groups=2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))

    @staticmethod
    def inputs(n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 2, 6, 6, generator=generator, dtype=torch.float64)


class TransformerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
        x = x + self.out((attention @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TinyTransformer(nn.Module):
    """Tokens (N, 5) → 3 logits: Embedding, a lone parameter, LayerNorm, attention, a checkpointed block."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 8)
        self.position = nn.Parameter(0.1 * torch.randn(5, 8))
        self.first, self.second = TransformerBlock(8), TransformerBlock(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.first(self.embedding(tokens) + self.position)
        x = checkpoint(self.second, x, use_reentrant=False)
        return self.head(x.mean(dim=1))

    @staticmethod
    def inputs(n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(7, (n, 5), generator=generator)


MODELS = {"resnet": TinyResNet, "transformer": TinyTransformer}


def task(name: str, *, n: int = 48, dtype: torch.dtype = torch.float64, seed: int = 0):
    """(model, inputs, targets) of a classification that can be learnt."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    generator = torch.Generator().manual_seed(0)
    x = MODELS[name].inputs(n, generator)
    features = x.double().flatten(1)
    y = (features @ torch.randn(features.shape[1], 3, generator=generator, dtype=torch.float64)).argmax(dim=1)
    return model.to(dtype), x.to(dtype) if x.is_floating_point() else x, y
