"""The covering designs."""

from __future__ import annotations

import os
from itertools import combinations, product

import pytest

from tests.covering import covering


@pytest.mark.parametrize("sizes", [(3, 2, 15), (2, 2, 2, 2), (15, 3, 3), (2, 5, 5, 3), (4, 3), (7,)])
def test_every_pair_of_options_occurs_and_few_cases_do(sizes: tuple[int, ...]) -> None:
    cases = [dict(enumerate(options)) for options in product(*map(range, sizes))]
    kept = [cases[i] for i in covering([{str(k): v for k, v in case.items()} for case in cases])]
    for a, b in combinations(range(len(sizes)), 2):
        assert {(case[a], case[b]) for case in kept} == set(product(range(sizes[a]), range(sizes[b])))
    largest = sorted(sizes)[-2:]
    least = largest[0] * largest[-1] if len(sizes) > 1 else sizes[0]
    assert least <= len(kept) <= 1.6 * least


def test_a_pair_that_no_case_has_is_not_asked_for() -> None:
    cases = [{"a": 0, "b": 0, "c": 0}, {"a": 1, "b": 1, "c": 0}, {"a": 1, "b": 1, "c": 0}]
    assert covering(cases) == [0, 1]


@pytest.mark.product
@pytest.mark.parametrize("a", ["x", "y", "z"])
@pytest.mark.parametrize("b", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("c", [True, False, None])
def test_a_marked_product_is_thinned(request: pytest.FixtureRequest, a: str, b: float, c: bool | None) -> None:
    cases = [item for item in request.session.items if getattr(item, "function", None) is request.function]
    assert len(cases) == 27 if os.environ.get("KFTUNE_TEST_ALL") else len(cases) <= 14
