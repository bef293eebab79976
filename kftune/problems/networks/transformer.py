"""A small transformer encoder with layer normalisation before each part (Vaswani et al. 2017; Xiong et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu


class SelfAttention(nn.Module):
    """softmax(QKᵀ/√d)V for several heads, written out.

    Each projection is a linear layer of its own, which methods that work layer by layer can see; plain products, unlike
    fused attention, can be differentiated in any way and any number of times.

    Args:
        width: of the tokens.
        n_heads: a divisor of ``width``.
    """

    def __init__(self, width: int, *, n_heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # a bias would add the same to all scores of a query: no effect
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self._n_heads = n_heads

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) → (n, tokens, width)."""
        query, key, value = (
            layer(x).unflatten(-1, (self._n_heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        mixed = torch.softmax(scores, dim=-1) @ value
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return output


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with one hidden layer.

    Args:
        width: of the tokens.
        n_heads: of the attention.
        n_hidden: units of the hidden layer.
    """

    def __init__(self, width: int, *, n_heads: int, n_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, n_heads=n_heads)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, n_hidden)
        self.out = nn.Linear(n_hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) → (n, tokens, width)."""
        x = x + self.attention(self.norm1(x))
        output: Tensor = x + self.out(gelu(self.hidden(self.norm2(x))))
        return output


class Transformer(nn.Module):
    """Tokens get a linear embedding and a learned position, go through blocks and are averaged for a linear head.

    Weights come from torch's global generator: Xavier-uniform, positions normal with deviation 0.02; biases are zero.

    Args:
        n_tokens: of a sequence.
        n_inputs: numbers of a token.
        width: of a token inside.
        n_blocks: how many.
        n_heads: of each attention.
        n_hidden: hidden units of each block.
        n_classes: outputs.
    """

    def __init__(
        self, *, n_tokens: int, n_inputs: int, width: int, n_blocks: int, n_heads: int, n_hidden: int, n_classes: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(n_inputs, width)
        self.position = nn.Parameter(torch.empty(n_tokens, width))
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, n_heads=n_heads, n_hidden=n_hidden) for _ in range(n_blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)
        nn.init.normal_(self.position, std=0.02)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_tokens, n_inputs) → (n, n_classes)."""
        tokens = self.blocks(self.embedding(x) + self.position)
        output: Tensor = self.head(self.norm(tokens).mean(dim=1))
        return output


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
