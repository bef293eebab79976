"""Layer sizes of a model and floors of the operations, by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from kftune.optim.costs.layerwise import foof_floor, kfac_floor
from kftune.optim.costs.operations import (
    application,
    cholesky,
    eigenbasis_application,
    eigendecomposition,
    extra_backward,
    forward_backward,
    gram,
    statistics,
)
from kftune.optim.costs.sizes import LayerSize, layer_sizes
from kftune.training.profile._run import floor_multiple


def sizes(model: nn.Module, x: torch.Tensor) -> list[tuple[int, int, int]]:
    return [(s.d_A, s.d_G, s.n_rows) for s in layer_sizes(model, lambda: model(x))]


def test_sizes_of_linear_layers_and_sequences() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))
    assert sizes(model, torch.randn(7, 4)) == [(5, 6, 7), (6, 3, 7)]
    assert sizes(model, torch.randn(7, 2, 5, 4)) == [(5, 6, 70), (6, 3, 70)]
    x = torch.randn(7, 2, 5, 4)
    assert [size.n_positions for size in layer_sizes(model, lambda: model(x))] == [10, 10]


def test_sizes_of_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # 9×9
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 6, (3, 5), stride=2, bias=False),  # ⌊(9 − 3)/2⌋ + 1 = 4, ⌊(9 − 5)/2⌋ + 1 = 3
        nn.Conv2d(6, 4, 2, groups=2),  # 3×2, two groups of 3 → 2 channels
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    assert sizes(model, torch.randn(5, 3, 9, 9)) == [
        (3 * 9 + 1, 8, 5 * 81),
        (8 * 15, 6, 5 * 12),
        (3 * 4 + 1, 2, 5 * 6),
        (3 * 4 + 1, 2, 5 * 6),
        (25, 10, 5),
    ]


def test_sizes_in_the_order_of_use_reuse_adds_up_and_frozen_layers_do_not_count() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.twice = nn.Linear(4, 4)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.unused = nn.Linear(9, 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.last(self.frozen(self.twice(self.twice(x))))
            return output

    model = Net()
    assert sizes(model, torch.randn(3, 4)) == [(5, 4, 6), (5, 2, 3)]
    assert not any(module._forward_hooks for module in model.modules())


TWO = (LayerSize(d_A=5, d_G=4, n_rows=10), LayerSize(d_A=4, d_G=3, n_rows=10))


def test_counts_of_a_small_net_by_hand() -> None:
    assert forward_backward(TWO) == 6 * 10 * (5 * 4 + 4 * 3) == 1920
    assert gram(10, 5) == 10 * 2 * 15  # 15 entries of a triangle, 10 products and sums each
    assert statistics(TWO[0]) == 300 + 200
    assert statistics(TWO[0], passes=3) == 300 + 600
    assert extra_backward(TWO) == 2 * 10 * 12
    assert cholesky(6) == 72
    assert eigendecomposition(6) == 720
    assert application(TWO[0]) == 2 * 5 * 4 * 9
    few_rows = LayerSize(d_A=5, d_G=4, n_rows=2)
    assert application(few_rows) == 2 * 2 * (25 + 16)
    between = LayerSize(d_A=9, d_G=2, n_rows=4)  # A to the 2 × 9 matrix, G to the 4 rows
    assert application(between) == 2 * 81 * 2 + 2 * 4 * 4
    assert eigenbasis_application(few_rows) == 164 + 360


@pytest.mark.parametrize(
    ("fisher", "gathering"),
    [
        ("mc", 500 + 200 + 120 + 240),
        ("permuted", 500 + 200 + 120 + 240),
        ("empirical", 500 + 200 + 120),
        ("exact", 300 + 3 * 200 + 200 + 3 * 120 + 3 * 240),
    ],
)
def test_floor_of_kfac_by_hand(fisher: str, gathering: int) -> None:
    params = {"fisher": fisher, "damping_method": "factored", "statistics_every": 2, "inverses_every": 4}
    floor = kfac_floor(TWO, params)
    assert floor["statistics"] == gathering / 2
    assert floor["inversion"] == pytest.approx((5**3 + 4**3 + 4**3 + 3**3) / 3 / 4)
    assert floor["preconditioning"] == 360 + 2 * 12 * 7
    in_basis = kfac_floor(TWO, params | {"damping_method": "exact"})
    assert in_basis["inversion"] == pytest.approx(10 * floor["inversion"])
    assert in_basis["preconditioning"] == 2 * floor["preconditioning"]
    assert floor_multiple(TWO, floor) == pytest.approx(1 + sum(floor.values()) / 1920)
    assert kfac_floor((), params) == {}


def test_averages_over_positions_are_fewer_rows() -> None:
    sequences = (LayerSize(d_A=5, d_G=4, n_rows=10, n_positions=5),)
    kfac = {"fisher": "empirical", "damping_method": "factored", "statistics_every": 1, "inverses_every": 1}
    foof = {"statistics_every": 1, "statistics_window": None, "inverses_every": 1}
    for floor, params, expand in ((kfac_floor, kfac, 300 + 200), (foof_floor, foof, 300)):
        assert floor(sequences, params | {"weight_sharing": "expand"})["statistics"] == expand
        assert floor(sequences, params | {"weight_sharing": "reduce"})["statistics"] == expand / 5


@pytest.mark.parametrize(
    ("every", "window", "period", "share"), [(1, None, 10, 1.0), (2, None, 10, 0.5), (1, 3, 10, 0.3), (2, 3, 10, 0.2)]
)
def test_floor_of_foof_by_hand(every: int, window: int | None, period: int, share: float) -> None:
    params = {"statistics_every": every, "statistics_window": window, "inverses_every": period}
    floor = foof_floor(TWO, params)
    assert floor["statistics"] == pytest.approx((300 + 200) * share)
    assert floor["inversion"] == pytest.approx((125 + 64) / 3 / period)
    assert floor["preconditioning"] == 2 * 25 * 4 + 2 * 16 * 3


def test_floor_of_the_mnist_autoencoder() -> None:
    widths = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
    layers = [LayerSize(d_A=a + 1, d_G=g, n_rows=500) for a, g in pairwise(widths)]
    base = forward_backward(layers)
    # With whole Gram matrices, inverses and the thin factors in every layer, amortised over 10 and 100 updates.
    whole = (
        sum(2 * 500 * (s.d_A**2 + s.d_G**2) * (1 + 1 / 10) for s in layers)
        + extra_backward(layers) / 10
        + sum(s.d_A**3 + s.d_G**3 for s in layers) / 100
    )
    assert 1 + whole / base == pytest.approx(1.87, abs=0.01)
    # One triangle, triangular solves, and the cheaper side in every layer: the lower bound itself.
    params = {"fisher": "mc", "damping_method": "factored", "statistics_every": 10, "inverses_every": 100}
    assert floor_multiple(layers, kfac_floor(layers, params)) == pytest.approx(1.784, abs=0.001)
