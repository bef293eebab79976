"""The covering designs."""

from __future__ import annotations

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
