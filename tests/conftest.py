"""For all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.covering import thin
from tests.processes.warm import warm


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Products of options are thinned, see :mod:`tests.covering`."""
    thin(config, items)


@pytest.fixture(scope="session", autouse=True)
def own_leases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of the tests do not wait for whatever else goes on on this machine."""
    patch = pytest.MonkeyPatch()
    patch.setenv("KFTUNE_LEASE_DIR", str(tmp_path_factory.mktemp("leases")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def warm_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes that a test starts are forked from its own, unless it is marked ``cold``."""
    if request.node.get_closest_marker("cold"):
        yield
        return
    with warm():
        yield
