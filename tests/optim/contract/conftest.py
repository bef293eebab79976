"""For the tests of the contract."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _young_heap() -> Iterator[None]:
    """The collector, and tests that count objects, look at what came after the module began: torch is a large heap."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
