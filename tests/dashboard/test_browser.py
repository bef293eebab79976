"""The page in a real browser."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.dashboard.conftest import Watched, page_of
from tests.dashboard.factory import OPTIMIZERS, make_database

Open = Callable[..., Watched]
EVIL = "<script>alert(1)</script>"
ALSO_EVIL = '</script><b>x</b><img src=x onerror="alert(2)">%{x}'


@pytest.fixture(scope="session")
def studied_page(studied: Path) -> Path:
    return page_of(studied)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two ``rgb(r, g, b)`` colours (WCAG 2.1, 1.4.3)."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def wait_until(page: Page, condition: str) -> None:
    """Playwright's own way to wait evaluates text inside the page, which the page's security policy forbids."""
    deadline = time.monotonic() + 10
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def n_traces(page: Page, plot: int) -> int:
    return page.locator(".plot").nth(plot).locator(".scatterlayer .trace").count()


def test_it_opens_from_disk_with_all_its_charts(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page).page
    assert page.title() == "thesis_cpu · kftune"
    assert page.locator(".problem h2").all_inner_texts() == ["mnist_autoencoder", "fashion_mnist_mlp"]
    # Sorted losses; curves against seconds and updates; and on the second problem both of accuracy, too.
    assert page.locator(".plot").count() == (1 + 2) + (1 + 4)
    assert page.locator(".plot .scatterlayer").count() == 8
    assert n_traces(page, 0) == 3
    assert n_traces(page, 1) == 3 * 4 + 3  # four configurations of each optimizer, and a band around its best
    titles = page.locator(".plot .xtitle").all_text_contents()
    assert titles[:3] == ["share of the started trials (%)", "training time (s)", "parameter updates"]
    assert "test accuracy (%)" in page.locator(".plot .ytitle").all_text_contents()
    assert page.locator(".best-configurations table").count() == 6
    buttons = page.locator(".modebar").first.locator("[data-title]")
    titles = buttons.evaluate_all("buttons => buttons.map((button) => button.dataset.title)")
    assert titles == ["Download plot", "Zoom", "Pan", "Reset axes"]  # and no upload to Plotly's cloud
    study_file = page.locator("details pre")
    assert not study_file.is_visible()
    page.locator("summary").click()
    assert study_file.is_visible()
    assert study_file.inner_text().startswith("name: thesis_cpu\n")


def test_nothing_sticks_out(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page).page
    for width in (1400, 1000, 700):
        page.set_viewport_size({"width": width, "height": 1000})
        fits = f"[...document.querySelectorAll('.plot .main-svg')].every((plot) => plot.clientWidth < {width})"
        wait_until(page, fits)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sides = page.locator("main *:not(svg *):not(.scroll *):not(pre)").evaluate_all(
            "elements => elements.map((element) => element.getBoundingClientRect().right)"
        )
        assert max(sides) <= width
        widths = page.locator(".plot .main-svg").evaluate_all("plots => plots.map((plot) => plot.clientWidth)")
        assert min(widths) > 300


def test_it_can_be_read_on_dark_and_on_light_paper(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page, colour_scheme="dark").page
    dark = check_colours(page)
    page.emulate_media(color_scheme="light")
    line = "getComputedStyle(document.querySelector('.plot .js-line')).stroke"
    wait_until(page, f"!{sorted(dark)}.includes({line})")
    light = check_colours(page)
    assert dark.isdisjoint(light)


def check_colours(page: Page) -> set[str]:
    """Everything has enough contrast to the paper; returns the lines' colours, which are those of the legend."""
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for text in (".sentence", ".key", "td", "th", "dt", "footer"):
        ink = page.locator(text).first.evaluate("element => getComputedStyle(element).color")
        assert contrast(ink, paper) >= 4.5, text
    for text in (".plot .xtick text", ".plot .ytitle", ".plot .annotation text"):
        ink = page.locator(text).first.evaluate("element => getComputedStyle(element).fill")
        assert contrast(ink, paper) >= 4.5, text
    strokes = "lines => lines.map((line) => getComputedStyle(line).stroke)"
    lines = set(page.locator(".plot .js-line").evaluate_all(strokes))
    assert lines == set(page.locator(".legend .mark line").evaluate_all(strokes))
    assert len(lines) == 3
    assert min(contrast(line, paper) for line in lines) >= 3
    return lines


def test_an_optimizer_can_be_hidden(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page).page
    first, second = page.locator(".problem").all()
    button = first.get_by_role("button", name="kfac")
    button.click()
    wait_until(page, "document.querySelectorAll('.plot')[0].querySelectorAll('.trace').length === 2")
    assert button.get_attribute("aria-pressed") == "false"
    assert n_traces(page, 1) == 2 * 4 + 2
    assert second.locator(".plot").first.locator(".trace").count() == 3  # only in this problem
    button.click()
    wait_until(page, "document.querySelectorAll('.plot')[0].querySelectorAll('.trace').length === 3")


def test_pointing_at_a_trial_shows_its_configuration(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page).page
    point = page.locator(".plot").first.locator(".trace").last.locator(".point").nth(2)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = page.locator(".plot").first.locator(".hoverlayer .hovertext")
    label.wait_for()
    shown = label.first.text_content() or ""
    assert "place 3 of 14" in shown
    assert "lr = " in shown
    assert "batch_size = " in shown


def test_strange_names_are_only_names(open_page: Open, tmp_path: Path) -> None:
    database = tmp_path / "evil.db"
    make_database(
        f"sqlite:///{database}",
        name=EVIL,
        problems=(EVIL, ALSO_EVIL),
        optimizers={EVIL: OPTIMIZERS["kfac"], ALSO_EVIL: OPTIMIZERS["sgd"]},
        n_trials=4,
        n_startup=2,
    )
    page = open_page(page_of(database)).page  # a dialog, an error or a request would fail the test at its end
    assert page.locator("h1").inner_text().startswith(EVIL)
    assert page.locator("h2").all_inner_texts() == [EVIL, ALSO_EVIL]
    assert [name.strip() for name in page.locator(".legend button").all_inner_texts()] == [EVIL, ALSO_EVIL] * 2
    assert page.locator("main img").count() == 0
    assert page.locator("main script:not([type='application/json'])").count() == 0
    page.get_by_role("button", name=EVIL).first.click()  # the name is also the key by which traces are found
    wait_until(page, "document.querySelectorAll('.plot')[0].querySelectorAll('.trace').length === 1")
    page.evaluate("Plotly.Fx.hover(document.querySelector('.plot'), [{curveNumber: 1, pointNumber: 0}])")
    assert ALSO_EVIL in (page.locator(".hoverlayer .hovertext").first.text_content() or "")


def test_a_script_that_got_in_would_not_run(open_page: Open, studied_page: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    text = studied_page.read_text(encoding="utf-8")
    changed.write_text(text.replace("<footer>", "<script>window.wasRun = true</script><footer>"), encoding="utf-8")
    watched = open_page(changed)
    assert watched.page.evaluate("window.wasRun") is None
    (problem,) = watched.problems
    assert "Content Security Policy" in problem
    watched.problems.clear()


@pytest.mark.parametrize("made", [{"n_made": 0}, {"n_made": 1}, {"all_fail": True}])
def test_there_may_be_little_to_show(open_page: Open, tmp_path: Path, made: dict[str, int]) -> None:
    database = tmp_path / "little.db"
    make_database(f"sqlite:///{database}", problems=("fashion_mnist_mlp",), n_trials=3, n_startup=1, **made)
    page = open_page(page_of(database), width=700).page
    empty = page.locator(".empty").all_inner_texts()
    if "all_fail" in made:
        assert empty == ["No run has ended well (finished trials: 9)."]
        assert page.locator(".plot").count() == 1
        visible = page.locator(".plot .point").evaluate_all("points => points.map((point) => point.checkVisibility())")
        assert visible == [True] * 9
    elif made["n_made"] == 0:
        assert empty == ["No trial has finished yet."] * 2
        assert page.locator(".plot").count() == 0
    else:
        assert empty == []
        assert page.locator(".plot .point").count() >= 3


def test_many_optimizers_stay_apart(open_page: Open, tmp_path: Path) -> None:
    database = tmp_path / "many.db"
    optimizers = {f"optimizer_{letter}": OPTIMIZERS["sgd"] for letter in "abcdefghijkl"}
    make_database(f"sqlite:///{database}", problems=("digits_mlp",), optimizers=optimizers, n_trials=2, n_startup=1)
    page = open_page(page_of(database), width=700).page
    looks = (
        page.locator(".plot")
        .first.locator(".js-line")
        .evaluate_all(
            "lines => lines.map((line) => getComputedStyle(line).stroke + getComputedStyle(line).strokeDasharray)"
        )
    )
    assert len(set(looks)) == 12
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
