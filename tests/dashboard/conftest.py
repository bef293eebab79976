import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from kftune.analysis.stored.results import FileResults, load_results
from kftune.dashboard.page import write_page
from kftune.storage.repository import Repository
from tests.analysis.conftest import filled, filled_file, repository  # noqa: F401 - fixtures
from tests.dashboard.factory import make_database

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of three optimizers on two problems, one with accuracy, with failures of all kinds."""
    path = tmp_path_factory.mktemp("studied") / "results.db"
    make_database(f"sqlite:///{path}", n_trials=14, n_startup=5)
    return path


@pytest.fixture(scope="session")
def file(studied: Path) -> FileResults:
    """What is in :func:`studied`."""
    with Repository.open(f"sqlite:///{studied}", read_only=True) as opened:
        return load_results(opened)[0]


@pytest.fixture(scope="session")
def confirmed_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three optimizers on two problems, the best two of each trained again on six fresh seeds."""
    path = tmp_path_factory.mktemp("confirmed") / "results.db"
    make_database(f"sqlite:///{path}", n_trials=14, n_startup=6, n_confirm=6)
    return path


@pytest.fixture(scope="session")
def confirmed(confirmed_database: Path) -> FileResults:
    """What is in :func:`confirmed_database`."""
    with Repository.open(f"sqlite:///{confirmed_database}", read_only=True) as opened:
        return load_results(opened)[0]


def page_of(database: Path) -> Path:
    """The page about a database, beside it."""
    out = database.with_suffix(".html")
    write_page({f"sqlite:///{database}": None}, out=out)
    return out


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real Chromium. Without one these tests are skipped, unless KFTUNE_REQUIRE_BROWSER is set, as in CI."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        message = "no Chromium found: install it (apt-get install chromium) to test the dashboard in a browser"
        if os.environ.get("KFTUNE_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Watched:
    """An open page and all that went wrong in it."""

    page: Page
    host: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def draw_all(self) -> None:
        """Scroll to every plot that can be seen, as a reader would, and wait until it is drawn."""
        for plot in self.page.locator(".plot").all():
            if plot.is_visible():
                plot.scroll_into_view_if_needed()
        wait_until(
            self.page,
            "[...document.querySelectorAll('.plot')].every((p) => !p.checkVisibility() || p.matches('.drawn'))",
        )


_UNREADABLE = """
() => {
  const found = [];
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  for (const plot of document.querySelectorAll(".plot.drawn")) {
    if (!plot.checkVisibility()) continue;
    const label = plot.getAttribute("aria-label"), box = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("text")].filter((text) => text.textContent.trim());
    for (const text of texts) {
      const its = text.getBoundingClientRect();
      const sticks = Math.max(box.left - its.left, its.right - box.right, box.top - its.top, its.bottom - box.bottom);
      if (sticks > 1) found.push(`${label}: '${text.textContent}' is cut off`);
    }
    const ticks = Map.groupBy(texts.filter((text) => /tick$/.test(text.parentNode.classList[0])),
      (text) => text.parentNode.classList[0]);
    for (const of of ticks.values()) {
      of.forEach((one, i) => of.slice(i + 1).forEach((other) => {
        if (overlap(one.getBoundingClientRect(), other.getBoundingClientRect()))
          found.push(`${label}: '${one.textContent}' and '${other.textContent}' overlap`);
      }));
    }
  }
  return found;
}
"""


def unreadable(page: Page) -> list[str]:
    """Words of drawn figures that are cut off at the figure's border, and labels of an axis that overlap."""
    found: list[str] = page.evaluate(_UNREADABLE)
    return found


def wait_until(page: Page, condition: str, seconds: float = 20) -> None:
    """Playwright's own way to wait evaluates text inside the page, which the page's security policy forbids."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Opens a file or a server's address as a user would, waits until it is drawn, and watches it.

    No error, no dialog, no request to anyone but the server it came from.
    """
    opened: list[Watched] = []

    def open_it(where: Path | str, *, width: int = 1400, colour_scheme: str = "light") -> Watched:
        url = where.as_uri() if isinstance(where, Path) else where
        page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=colour_scheme)  # type: ignore[arg-type] # a Literal
        watched = Watched(page, host=url)
        opened.append(watched)

        def console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                watched.problems.append(message.text)

        page.on("console", console)
        page.on("pageerror", lambda error: watched.problems.append(str(error)))
        page.on("dialog", lambda dialog: (watched.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: watched.requests.append(request.url))
        page.goto(url)
        page.wait_for_selector("html.drawn", state="attached", timeout=60_000)
        return watched

    yield open_it
    for watched in opened:
        watched.page.close()
        assert watched.problems == []
        elsewhere = [u for u in watched.requests if not u.startswith((watched.host, "data:", "blob:"))]
        assert elsewhere == []
