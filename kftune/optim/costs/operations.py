"""Floating-point operations that a method cannot avoid: what ``floor`` of an optimizer's registry entry is made of.

A floor is a lower bound: only then does "within 1.3 times the floor" claim something. Of two ways to the same numbers
the cheaper one counts, and what is not a product or a factorisation of matrices is left out. A sum of n products is 2n
operations. For a layer with A (d_A × d_A), G (d_G × d_G) and n rows (examples times positions):

* forward and backward pass: 6·n·d_A·d_G, three products, the first layer's too;
* statistics: n·d·(d + 1) per factor, one triangle of a Gram matrix;
* a backward pass for drawn labels: 2·n·d_A·d_G, back-propagation to activations, which the first layer does not need;
* a Cholesky factor: d³/3 (Golub & Van Loan, Matrix Computations, 4th ed. 2013, section 4.2);
* an eigendecomposition: 10·d³/3, see :func:`eigendecomposition`;
* application: 2·d_A²·min(d_G, n) + 2·d_G²·min(d_A, n), to the gradient or to the thin factors gᵀā that it is made of.

The rows of a convolution are the patches that its output positions see, taken one by one. Patches overlap, and where
the stride is 1, correlations of the input could make A from fewer operations: there the floor of the statistics is that
of the usual method, not of every conceivable one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kftune.optim.costs.sizes import LayerSize

_PASSES = {"mc": 1, "permuted": 1, "empirical": 0}  # "exact" needs one per output


def forward_backward(layers: Sequence[LayerSize]) -> float:
    """6·Σ n·d_A·d_G: the forward pass, and the backward pass to weights and activations of all layers."""
    return 6.0 * sum(layer.n_rows * layer.d_A * layer.d_G for layer in layers)


def gram(n_rows: int, d: int) -> float:
    """XᵀX of an n × d matrix: d·(d + 1)/2 different entries, 2n operations each."""
    return float(n_rows * d * (d + 1))


def sample_size(layer: LayerSize, params: Mapping[str, Any]) -> int:
    """Rows that A is made of: examples alone with ``weight_sharing="reduce"``, which a method may not have."""
    return layer.n_rows // layer.n_positions if params.get("weight_sharing") == "reduce" else layer.n_rows


def statistics(layer: LayerSize, *, passes: int = 1, n_sample: int | None = None) -> float:
    """A and G of one statistics update; G from ``passes`` gradients of every row, or of ``n_sample`` sums of rows."""
    n = layer.n_rows if n_sample is None else n_sample
    return gram(n, layer.d_A) + gram(n * passes, layer.d_G)


def extra_backward(layers: Sequence[LayerSize]) -> float:
    """One more backward pass, to the activations alone; nobody needs the gradient by the first layer's input."""
    return 2.0 * sum(layer.n_rows * layer.d_A * layer.d_G for layer in layers[1:])


def cholesky(d: int) -> float:
    """M = LLᵀ. Two triangular solves with L then cost as much as one product with M⁻¹, which need not be made."""
    return d**3 / 3


def eigendecomposition(d: int) -> float:
    """4d³/3 to a tridiagonal matrix and 2d³ to bring its eigenvectors back; the tridiagonal problem itself is free.

    The QR iteration takes about 9d³ (Golub & Van Loan, section 8.3), divide and conquer between 10d³/3 and 14d³/3,
    depending on deflation (Demmel, Applied Numerical Linear Algebra, 1997, section 5.3).
    """
    return 10 * d**3 / 3


def application(layer: LayerSize) -> float:
    """G⁻¹VA⁻¹, each side either to a matrix or to the n rows that V = gᵀā is the product of.

    The product of rows that were multiplied already replaces the gradient's own, which is counted.
    """
    return input_application(layer) + 2.0 * layer.d_G**2 * min(layer.d_A, layer.n_rows)


def input_application(layer: LayerSize) -> float:
    """VA⁻¹, or gᵀ(āA⁻¹)."""
    return 2.0 * layer.d_A**2 * min(layer.d_G, layer.n_rows)


def eigenbasis_application(layer: LayerSize) -> float:
    """U_G[(U_GᵀVU_A) ⊘ S]U_Aᵀ: into the basis like :func:`application`, and back as a matrix."""
    return application(layer) + 2.0 * layer.d_A * layer.d_G * (layer.d_A + layer.d_G)


def fisher_passes(layers: Sequence[LayerSize], fisher: str) -> int:
    """Backward passes that a kind of Fisher adds to the loss's own; "exact" one per output of the last layer."""
    return layers[-1].d_G if fisher == "exact" else _PASSES[fisher]


def second_moments(layer: LayerSize, *, passes: int = 1) -> float:
    """EKFAC's S of one gathering, from ``passes`` gradients of every row, where U_A's share may be the application's.

    With one position the squares of all passes go into one product. With more, gradients of examples are made, and
    either their rows or they themselves rotated, whichever is less.
    """
    d_A, d_G, n = layer.d_A, layer.d_G, layer.n_rows
    products = 2.0 * n * d_A * d_G
    if layer.n_positions == 1:
        return 2.0 * n * d_G**2 * passes + products
    rotating_rows = 2.0 * n * d_G**2 * passes
    rotating_gradients = 2.0 * n / layer.n_positions * d_A * d_G * (d_A + d_G) * passes
    return products * passes + min(rotating_rows, rotating_gradients)
