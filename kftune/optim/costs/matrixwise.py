"""Floors of the methods that multiply gradients, as matrices, from their sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kftune.optim.costs.sizes import LayerSize
from kftune.optim.interface import Phase


def muon_floor(layers: Sequence[LayerSize], params: Mapping[str, Any]) -> Mapping[Phase, float]:
    """S and S² (symmetric: half of a product each) and one full product per iteration."""
    taken = {"all": layers, "not_output": layers[:-1], "hidden": layers[1:-1]}[params["matrices"]]
    sides = [sorted((layer.d_A, layer.d_G)) for layer in taken]
    return {"update": float(params["ns_steps"] * sum(m * m * n + m**3 + 2 * m * m * n for m, n in sides))}


def _floor_of(
    refresh: Callable[[int], float], *, averaged_first: bool
) -> Callable[[Sequence[LayerSize], Mapping[str, Any]], dict[Phase, float]]:
    """The floor of a method with Shampoo's two factors.

    A gradient of n rows is EᵀA with thin E and A: where n is small, products with it go through them.

    Args:
        refresh: operations of using a factor of a given side anew.
        averaged_first: whether the averaged gradient is multiplied from both sides (once); otherwise the gradient is,
            and what is made of it is multiplied back.
    """

    def floor(layers: Sequence[LayerSize], params: Mapping[str, Any]) -> dict[Phase, float]:
        operations: dict[Phase, float] = {"statistics": 0.0, "inversion": 0.0, "preconditioning": 0.0}
        if params["dimensions"] == "merged":  # to what, a layer's two sides do not tell
            return operations
        for layer in layers:
            n = layer.n_rows
            sides = ((layer.d_G, layer.d_A), (layer.d_A, layer.d_G))
            # Of a convolution's kernel, the sides of the other dimensions are not known.
            for side, other in sides[:1] if params["dimensions"] == "each" and layer.n_positions > 1 else sides:
                if 1 < side <= params["max_dimension"]:
                    # Symmetric results take half of a product.
                    thin = n * n * other + 2 * n * n * side + n * side * side
                    operations["statistics"] += min(side * side * other, thin)
                    operations["inversion"] += refresh(side) / params["inverses_every"]
                    forth = 0 if averaged_first else 2 * side * side * min(n, other)
                    operations["preconditioning"] += forth + 2 * side * side * other
        return operations

    return floor


# An eigendecomposition (to tridiagonal form 4/3·d³, back-transformation 2·d³) and the symmetric product of a root.
shampoo_floor = _floor_of(lambda side: (4 / 3 + 2 + 1) * side**3, averaged_first=True)

# MQ and its QR decomposition with Q formed (4/3·d³ twice); the rotation there and back.
soap_floor = _floor_of(lambda side: (2 + 8 / 3) * side**3, averaged_first=False)
