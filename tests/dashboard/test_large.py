"""Ten thousand trials with curves: the page stays small, and shows what is there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dashboard.conftest import Watched, page_of
from tests.dashboard.large import make_large


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.db"
    make_large(f"sqlite:///{path}", n_trials=10_000)
    return page_of(path)


@pytest.mark.timeout(600)
def test_a_large_page_is_small_enough_and_can_be_used(open_page: Callable[..., Watched], large_page: Path) -> None:
    assert large_page.stat().st_size < 10e6
    page = open_page(large_page).page
    sorted_losses = page.locator(".sorted-losses .plot").first
    sorted_losses.scroll_into_view_if_needed()
    sorted_losses.locator(".point").first.wait_for(state="attached")
    n_points = sorted_losses.locator(".point").count()
    assert 1000 < n_points < 4000  # of the ten thousand
    assert sorted_losses.evaluate("(p) => p._fullData.map((trace) => Math.max(...trace.x))") == [100] * 5
    page.locator(".slider input").first.scroll_into_view_if_needed()
    page.locator(".budget tbody tr").nth(4).wait_for()
    assert page.locator(".budget tbody tr").count() == 5
