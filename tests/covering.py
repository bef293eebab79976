"""What ``make test`` leaves to ``make test-all``: tests marked ``full``, and most cases of large products of options.

Most faults that depend on options depend on one or two of them (Kuhn, Wallace, Gallo: Software fault interactions and
implications for software testing, 2004). A test that is marked ``product`` and has three parameters or more runs on a
covering design, on which every pair of options occurs; with ``KFTUNE_TEST_ALL=1`` on the whole product.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from typing import TypeAlias

import pytest

Case: TypeAlias = Mapping[str, Hashable]


def covering(cases: Sequence[Case]) -> list[int]:
    """Positions of cases that have every pair of options that any case has, by the greedy rule; in their order."""
    pairs = [_pairs(case) for case in cases]
    left = set().union(*pairs)
    taken = []
    while left:
        best = max(range(len(cases)), key=lambda i: (len(pairs[i] & left), -i))
        taken.append(best)
        left -= pairs[best]
    return sorted(taken)


def _pairs(case: Case) -> set[Hashable]:
    return set(combinations(sorted(case.items()), 2)) if len(case) > 1 else set(case.items())


def thin(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is left to ``make test-all``."""
    if os.environ.get("KFTUNE_TEST_ALL"):
        return
    by_test = defaultdict(list)
    for item in items:
        if item.get_closest_marker("product") and isinstance(item, pytest.Function):
            by_test[item.nodeid.partition("[")[0]].append(item)
    left_out = {item for item in items if item.get_closest_marker("full")}
    for found in by_test.values():
        kept = covering([_options(item) for item in found])
        left_out |= set(found) - {found[i] for i in kept}
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _options(item: pytest.Function) -> Case:
    """Parameter → its option: cases of one option share the object."""
    return {name: id(value) for name, value in item.callspec.params.items()}
