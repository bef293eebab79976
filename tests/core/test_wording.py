"""Numbers as people read them."""

import math

import pytest

from kftune.wording import loss, reads_up_to, trials_made


@pytest.mark.parametrize(
    "value", [1.0, 9.9994, 9.9996, 0.00012345, 12345.6, 1e-300, 3e200, -0.5123, -9.9996, 0.1 + 0.2]
)
def test_the_largest_number_that_reads_alike(value: float) -> None:
    most = reads_up_to(value)
    assert most >= value
    assert loss(most) == loss(value)
    step = 10.0 ** (math.floor(math.log10(abs(most))) - 3)
    assert loss(most + 0.01 * step) != loss(value)


@pytest.mark.parametrize("value", [0.0, math.inf, -math.inf])
def test_some_numbers_are_read_alone(value: float) -> None:
    assert reads_up_to(value) == value


@pytest.mark.parametrize(
    ("made", "text"),
    [([(3, 12)], "3 of 12"), ([(14, 12)], "12 of 12 and 2 more"), ([(14, 12), (5, 12)], "17 of 24 and 2 more")],
)
def test_more_trials_than_are_asked_for_are_not_so_many_of_them(made: list[tuple[int, int]], text: str) -> None:
    assert trials_made(made) == text
