"""For all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.processes.warm import warm_workers


@pytest.fixture(scope="session", autouse=True)
def own_leases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of the tests do not wait for whatever else goes on on this machine."""
    patch = pytest.MonkeyPatch()
    patch.setenv("KFTUNE_LEASE_DIR", str(tmp_path_factory.mktemp("leases")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def warm(request: pytest.FixtureRequest) -> Iterator[None]:
    """Workers that a test starts are forked from its process, unless it is marked ``cold``."""
    if request.node.get_closest_marker("cold"):
        yield
        return
    with warm_workers():
        yield
