"""Second moments of 3 × 3 patches without making patches.

For a stride of 1 and a zero padding of 1, Σ over output positions p of x[p + k] x[p + k′]ᵀ depends on k and k′ through
their difference Δ alone, up to border terms. So the 81 blocks of Σ a aᵀ follow from 13 correlations of the image with
itself (those of −Δ are transposes), where 45 products of patches would be needed, and nothing nine times as large as
the image is held. With k from 0 to 2, a term is missing from the full correlation only where both patch elements leave
the image on the same side: for k_y = k′_y = 0 its last row, for 2 its first, the same for columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kftune.optim.curvature.patches import Window

_SAME = Window(kernel=(3, 3), stride=(1, 1), dilation=(1, 1), padding=(1, 1, 1, 1), padding_mode="zeros")
_SHIFTS = (-2, -1, 0, 1, 2)
_FIRST, _LAST = 2, 0  # the k at which the first or last row (column) is missing


def can_correlate(window: Window) -> bool:
    """Whether :func:`add_correlations` is for this geometry."""
    return window == _SAME


def add_correlations(total: Tensor, x: Tensor) -> None:
    """total += Σ a aᵀ over all 3 × 3 patches a of images x.

    Args:
        total: (9C, 9C), rows and columns in the order (channel, k_y, k_x); may be a view with rows further apart.
        x: (N, C, H, W).
    """
    n_channels = x.shape[1]
    # Two columns and rows of zeros after each image: shifted by up to two, nothing meets another row or image.
    padded = torch.nn.functional.pad(x, (0, 2, 0, 2)).transpose(0, 1).contiguous()
    whole = _images(padded)
    rows = {k: _lines(padded[:, :, at, :]) for k, at in _borders(x.shape[2])}
    columns = {k: _lines(padded[:, :, :, at]) for k, at in _borders(x.shape[3])}
    corners = {
        (ky, kx): padded[:, :, y, x_] @ padded[:, :, y, x_].T
        for ky, y in _borders(x.shape[2])
        for kx, x_ in _borders(x.shape[3])
    }
    blocks = []
    for ky, kx, other_y, other_x in _index_pairs():
        block = whole[other_y - ky, other_x - kx]
        on_row, on_column = ky == other_y != 1, kx == other_x != 1
        if on_row:
            block = block - rows[ky][other_x - kx]
        if on_column:
            block = block - columns[kx][other_y - ky]
        if on_row and on_column:
            block = block + corners[ky, kx]
        blocks.append(block)
    stacked = torch.stack(blocks).view(9, 9, n_channels, n_channels)
    total += stacked.permute(2, 0, 3, 1).reshape(total.shape)


def _index_pairs() -> list[tuple[int, int, int, int]]:
    return [(a, b, c, d) for a in range(3) for b in range(3) for c in range(3) for d in range(3)]


def _borders(size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(k, the row or column that is missing there)."""
    return (_FIRST, 0), (_LAST, size - 1)


def _images(padded: Tensor) -> dict[tuple[int, int], Tensor]:
    """Δ → Σ x[q] x[q + Δ]ᵀ, (C, C), over all pixels q of all images."""
    flat, width = padded.flatten(1), padded.shape[3]
    found: dict[tuple[int, int], Tensor] = {}
    for dy in (0, 1, 2):
        for dx in _SHIFTS if dy else (0, 1, 2):
            found[dy, dx] = _shifted_product(flat, dy * width + dx)
            found.setdefault((-dy, -dx), found[dy, dx].T)
    return found


def _lines(lines: Tensor) -> dict[int, Tensor]:
    """Δ → Σ x[q] x[q + Δ]ᵀ, (C, C), over all pixels q of lines (C, N, length + 2)."""
    flat = lines.flatten(1)
    found: dict[int, Tensor] = {}
    for d in (0, 1, 2):
        found[d] = _shifted_product(flat, d)
        found.setdefault(-d, found[d].T)
    return found


def _shifted_product(flat: Tensor, shift: int) -> Tensor:
    return flat[:, : flat.shape[1] - shift] @ flat[:, shift:].T
