"""Floors of the methods that precondition layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from kftune.optim.costs.operations import (
    application,
    cholesky,
    eigenbasis_application,
    eigendecomposition,
    extra_backward,
    fisher_passes,
    gram,
    input_application,
    sample_size,
    second_moments,
    statistics,
)
from kftune.optim.costs.sizes import LayerSize
from kftune.optim.interface import Phase


def kfac_floor(layers: Sequence[LayerSize], params: Mapping[str, Any]) -> dict[Phase, float]:
    """Floor of K-FAC with ``fisher``, ``damping_method``, ``weight_sharing`` and its two periods."""
    if not layers:
        return {}
    passes = fisher_passes(layers, params["fisher"])
    gathering = passes * extra_backward(layers) + sum(
        statistics(layer, passes=max(1, passes), n_sample=sample_size(layer, params)) for layer in layers
    )
    in_eigenbasis = params["damping_method"] == "exact"
    factorisation = eigendecomposition if in_eigenbasis else cholesky
    apply = eigenbasis_application if in_eigenbasis else application
    inverting = sum(factorisation(layer.d_A) + factorisation(layer.d_G) for layer in layers)
    return {
        "statistics": gathering / params["statistics_every"],
        "inversion": inverting / params["inverses_every"],
        "preconditioning": sum(apply(layer) for layer in layers),
    }


def kfac_tridiagonal_floor(layers: Sequence[LayerSize], params: Mapping[str, Any]) -> dict[Phase, float]:
    """K-FAC's, with cross-moments, the spectra of what the next layer explains, and products with Ψ, there and back."""
    floor = kfac_floor(layers, {**params, "damping_method": "factored"})
    pairs = list(pairwise(layers))
    if not pairs:
        return floor
    passes = max(1, fisher_passes(layers, params["fisher"]))
    crosses = sum(2.0 * own.n_rows * (own.d_A * n.d_A + passes * own.d_G * n.d_G) for own, n in pairs)
    # A square has as many eigenvalues beside 0 as its thinner side.
    spectra = sum(eigendecomposition(min(own.d_A, n.d_A)) + eigendecomposition(min(own.d_G, n.d_G)) for own, n in pairs)
    there = sum(
        2.0 * (own.d_A * n.d_A * min(n.d_G, n.n_rows) + own.d_G * n.d_G * min(own.d_A, n.n_rows)) for own, n in pairs
    )
    back = sum(2.0 * min(n.d_G * own.d_A * (own.d_G + n.d_A), n.d_A * own.d_G * (own.d_A + n.d_G)) for own, n in pairs)
    in_basis = sum(eigenbasis_application(own) for own, _ in pairs)
    last = kfac_floor(layers[-1:], {**params, "damping_method": "factored"})["preconditioning"]
    return {
        "statistics": floor["statistics"] + crosses / params["statistics_every"],
        "inversion": floor["inversion"] + spectra / params["inverses_every"],
        "preconditioning": last + in_basis + there + back,
    }


def foof_floor(layers: Sequence[LayerSize], params: Mapping[str, Any]) -> dict[Phase, float]:
    """Floor of FOOF with ``weight_sharing`` and its three periods: A alone, no pass for labels."""
    period, window = params["inverses_every"], params["statistics_window"]
    n_gatherings = sum(
        k % params["statistics_every"] == 0 and (window is None or -k % period < window) for k in range(period)
    )
    return {
        "statistics": sum(gram(sample_size(layer, params), layer.d_A) for layer in layers) * n_gatherings / period,
        "inversion": sum(cholesky(layer.d_A) for layer in layers) / period,
        "preconditioning": sum(input_application(layer) for layer in layers),
    }


def ekfac_floor(layers: Sequence[LayerSize], params: Mapping[str, Any]) -> dict[Phase, float]:
    """Floor of EKFAC with ``fisher``, ``statistics_every``, ``scalings_every`` and ``inverses_every``."""
    if not layers:
        return {}
    passes = fisher_passes(layers, params["fisher"])
    statistics_every, scalings_every = params["statistics_every"], params["scalings_every"]
    covariances = sum(statistics(layer, passes=max(1, passes)) for layer in layers)
    moments = sum(second_moments(layer, passes=max(1, passes)) for layer in layers)
    backward = passes * extra_backward(layers) / min(statistics_every, scalings_every)
    decompositions = sum(eigendecomposition(layer.d_A) + eigendecomposition(layer.d_G) for layer in layers)
    return {
        "statistics": covariances / statistics_every + moments / scalings_every + backward,
        "inversion": decompositions / params["inverses_every"],
        "preconditioning": sum(eigenbasis_application(layer) for layer in layers),
    }


def skfac_floor(layers: Sequence[LayerSize], params: Mapping[str, Any]) -> dict[Phase, float]:
    """Floor of SKFAC with ``fisher``, ``weight_sharing`` and ``inverses_every``: the smaller side of every factor."""
    if not layers:
        return {}
    passes = fisher_passes(layers, params["fisher"])
    reduce = params["weight_sharing"] == "reduce"
    gathering, inverting, applying = passes * extra_backward(layers), 0.0, 0.0
    for layer in layers:
        n = layer.n_rows // layer.n_positions if reduce else layer.n_rows
        sides = ((layer.d_A, layer.d_G, n), (layer.d_G, layer.d_A, n * max(1, passes)))
        for d, other, n_sample in sides:
            inverting += gram(max(n_sample, d), min(n_sample, d)) + cholesky(min(n_sample, d))
            # A batch's own rows need no more than one triangular solve after the other.
            applying += 2.0 * d * min(d, n_sample) * min(other, layer.n_rows)
    return {
        "statistics": gathering / params["inverses_every"],
        "inversion": inverting / params["inverses_every"],
        "preconditioning": applying,
    }


def natural_gradient_floor(layers: Sequence[LayerSize], params: Mapping[str, Any]) -> dict[Phase, float]:
    """Inner products and their Cholesky factor in the updates that renew F; products with V in all.

    In an update that renews F, the sum of the examples' gradients merges with the product that V is made of.
    """
    if not layers:
        return {}
    period, fisher = params["inverses_every"], params["fisher"]
    passes, n_directions = fisher_passes(layers, fisher), layers[-1].d_G if fisher == "exact" else 1
    n_examples = min(layer.n_rows // layer.n_positions for layer in layers)
    n = min(n_examples, params["fisher_examples"] or n_examples)
    m = n * n_directions
    n_factors = len(layers) if params["block_diagonal"] else 1
    renewal, preconditioning = n_factors * cholesky(m), n_factors * 2.0 * m**2
    for layer in layers:
        d_A, d_G, t = layer.d_A, layer.d_G, layer.n_positions
        by_matrices = 2.0 * m * t * d_A * d_G + m * (m + 1.0) * d_A * d_G
        renewal += min(gram(d_A, n * t) + gram(d_G, m * t), by_matrices)
        product = 2.0 * min(n * t, m) * d_A * d_G
        by_rows = 2.0 * layer.n_rows * t * (n * d_A + m * d_G)
        preconditioning += min(product, by_rows) + product * (1 - 1 / period)
    return {
        "statistics": passes * extra_backward(layers) / period,
        "inversion": renewal / period,
        "preconditioning": preconditioning,
    }


def cg_fac_floor(layers: Sequence[LayerSize], params: Mapping[str, Any]) -> dict[Phase, float]:
    """One product with F, that of the start, or all ``cg_iterations`` where no tolerance ends them early."""
    if not layers:
        return {}
    passes = fisher_passes(layers, params["fisher"])
    n_products = 1 if params["cg_tolerance"] > 0 else params["cg_iterations"]
    product = _fisher_product if params["operator"] == "fisher" else _kronecker_product
    return {
        "statistics": passes * extra_backward(layers),
        "preconditioning": n_products * sum(product(layer, passes=max(1, passes)) for layer in layers),
    }


def _fisher_product(layer: LayerSize, *, passes: int) -> float:
    """With the rows, or with the gradients of examples, which the making of is not counted."""
    return 4.0 * layer.d_A * layer.d_G * min(layer.n_rows, layer.n_rows // layer.n_positions * passes)


def _kronecker_product(layer: LayerSize, *, passes: int) -> float:
    """GXA with matrices or with the rows that they are made of, on each side and in either order."""
    d_A, d_G, r_A, r_G = layer.d_A, layer.d_G, layer.n_rows, layer.n_rows * passes
    return 2.0 * min(
        d_A * d_G * (d_A + d_G),
        d_G * d_A * (d_G + 2 * r_A),
        d_G * d_A * (d_A + 2 * r_G),
        r_G * d_A * (2 * d_G + d_A),
        r_A * d_G * (2 * d_A + d_G),
        2 * r_G * d_A * (d_G + r_A),
        2 * r_A * d_G * (d_A + r_G),
    )
