"""How figures look: colours, axes, and what of many marks is drawn."""

import itertools
import math

import numpy as np
import pytest

from kftune.dashboard.figures._arrays import spread_out, visible
from kftune.dashboard.figures.style import DARK, optimizer_styles, value_axis
from kftune.optim import OPTIMIZERS


def test_styles_go_by_name_and_differ() -> None:
    names = [f"optimizer {i:02}" for i in range(35)]
    styles = optimizer_styles(names)
    assert styles == optimizer_styles(reversed(names))
    assert len({style[:2] for style in styles.values()}) == 35
    assert len({(style.colour, style.symbol) for style in styles.values()}) == 35
    # Told apart at the size of a mark: a pentagon or hexagon is a circle there, and a cross is a failure.
    assert not {style.symbol for style in styles.values()} & {"pentagon", "hexagon", "octagon", "x"}
    assert len({styles[name].colour for name in names[:15]}) == 15
    assert all(style.colour in DARK for style in styles.values())


def cielab(colour: str) -> np.ndarray:
    """CIE 1976 L*a*b* of an sRGB colour under D65."""
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.95047, 1.0, 1.08883]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("n", [2, 7, 12, 15])
def test_no_two_optimizers_have_colours_that_look_alike(n: int) -> None:
    """A difference of 2.3 is just noticeable side by side; lines in a legend need several times that."""
    for names in (OPTIMIZERS.names()[:n], [f"mine {i}" for i in range(n)]):
        colours = [style.colour for style in optimizer_styles(names).values()]
        for paper in (colours, [DARK[colour] for colour in colours]):
            for one, other in itertools.combinations(paper, 2):
                assert np.linalg.norm(cielab(one) - cielab(other)) > 15, (one, other)


def test_usual_optimizers_look_the_same_in_every_study() -> None:
    assert optimizer_styles(["kfac", "sgd"])["sgd"] == optimizer_styles(["adamw", "foof", "kfac", "mine", "sgd"])["sgd"]


def test_what_no_eye_can_see_is_left_out() -> None:
    x = [i / 9999 for i in range(10_000)]
    y = [math.log(0.01 + value**8) for value in x]
    kinds = [int(i > 9000) for i in range(10_000)]
    kept = visible(x, y, kinds)
    assert kept[:25] == list(range(25))
    assert {9001, 9999} <= set(kept)
    assert 300 < len(kept) < 1000
    width, height = x[-1] - x[0], max(y) - min(y)
    for before, after in itertools.pairwise(kept):  # nowhere is a visible step skipped
        assert after == before + 1 or (
            x[after - 1] - x[before] < width / 400 and abs(y[after - 1] - y[before]) < height / 400
        )
    assert visible(x[:100], y[:100], kinds[:100]) == list(range(100))


@pytest.mark.parametrize(("n", "most"), [(3, 10), (10, 10), (1000, 60), (61, 60)])
def test_of_many_ranked_things_the_first_few_are_all_kept(n: int, most: int) -> None:
    kept = spread_out(n, most)
    assert len(kept) == len(set(kept)) == min(n, most)
    assert kept[: most // 8] == list(range(min(n, most // 8)))
    assert kept[-1] == n - 1
    # Not so many that the front looks denser than it is: the best tenth is hardly more than a fifth of the marks.
    assert sum(i < n / 10 for i in kept) <= max(0.22 * len(kept), 1)


@pytest.mark.parametrize(
    ("values", "dtick"),
    [
        ([2.0, 2.05], "L1"),
        ([0.136, 0.161], "L0.005"),
        ([1.0, 5.0], "L1"),
        ([1.0, 6.0], "D2"),
        ([1e-4, 1.0], 1),
        ([1e-9, 10.0], 2),
    ],
)
def test_a_logarithmic_axis_has_a_few_round_ticks(values: list[float], dtick: str | int) -> None:
    axis = value_axis(values)
    assert (axis["type"], axis.get("dtick")) == ("log", dtick)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 2.0], {"type": "log", "dtick": "D2"}),
        ([0.0, 2.0], {"type": "linear"}),
        ([-1.0, 2.0], {"type": "linear"}),
        ([1e-6, 1e3], {"type": "log", "dtick": 2}),
        ([1.0, 2.0], {"type": "log"}),
        ([2.0, 2.0], {"type": "log", "range": [0.0, pytest.approx(math.log10(4))]}),
    ],
)
def test_values_are_drawn_by_their_logarithm_if_they_have_one(values: list[float], expected: dict[str, object]) -> None:
    axis = value_axis(values)
    assert {key: axis.get(key) for key in expected} == expected
    assert ("range" in axis) == ("range" in expected)
