"""The page in a real browser."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page

from tests.dashboard.conftest import Watched, page_of, unreadable, wait_until
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


def plot_of(page: Page, panel: str, nth: int = 0) -> Locator:
    """A plot of the first problem's panel, scrolled to and drawn."""
    plot = page.locator(f".panel.{panel}").first.locator(".plot").nth(nth)
    plot.scroll_into_view_if_needed()
    drawn = f"document.querySelectorAll('.panel.{panel}')[0].querySelectorAll('.plot')[{nth}].matches('.drawn')"
    wait_until(page, drawn)
    return plot


def test_it_opens_from_disk_with_all_its_panels(open_page: Open, studied_page: Path) -> None:
    watched = open_page(studied_page)
    page = watched.page
    assert page.title() == "thesis_cpu · kftune"
    assert page.locator(".problem h2").all_inner_texts() == ["mnist_autoencoder", "fashion_mnist_mlp", "All problems"]
    assert page.locator(".panel h3").all_inner_texts()[:8] == [
        *("Verdict", "Sorted test losses", "Learning curves of the best configurations"),
        *("If the budget had been smaller", "Tunability", "Hyperparameters", "Batch size", "Step anatomy"),
    ]
    watched.draw_all()
    assert plot_of(page, "sorted-losses").locator(".scatterlayer .trace").count() == 3
    # Four configurations of each optimizer, and a band around its best.
    assert plot_of(page, "learning-curves").locator(".scatterlayer .trace").count() == 3 * 4 + 3
    for plot in page.locator(".plot.drawn").all():
        if plot.is_visible():
            titles = [title for title in plot.locator(".xtitle, .ytitle").all_text_contents() if title]
            assert len(titles) >= 1, plot.get_attribute("aria-label")
    buttons = page.locator(".modebar").first.locator("[data-title]")
    titles = buttons.evaluate_all("buttons => buttons.map((button) => button.dataset.title)")
    assert titles == ["Download plot", "Zoom", "Pan", "Reset axes"]  # and no upload to Plotly's cloud
    study_file = page.locator("details pre")
    assert not study_file.is_visible()
    page.locator("summary").click()
    assert study_file.is_visible()
    assert study_file.inner_text().startswith("name: thesis_cpu\n")


def test_plots_out_of_sight_wait_until_they_are_scrolled_to(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page).page
    n_plots = page.locator(".plot").count()
    assert 0 < page.locator(".plot.drawn").count() < n_plots / 4
    plot_of(page, "anatomy")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(open_page: Open, confirmed_database: Path, scheme: str) -> None:
    watched = open_page(page_of(confirmed_database), colour_scheme=scheme)
    page = watched.page
    watched.draw_all()
    for width in (1400, 700):
        page.set_viewport_size({"width": width, "height": 1000})
        wait_until(
            page, f"[...document.querySelectorAll('.plot.drawn .main-svg')].every((plot) => plot.clientWidth < {width})"
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert unreadable(page) == []
        sides = page.locator("main *:not(svg *):not(.scroll *):not(pre):not(.plot *)").evaluate_all(
            "elements => elements.map((element) => element.getBoundingClientRect().right)"
        )
        assert max(sides) <= width
        heights = page.locator(".scroll").evaluate_all("boxes => boxes.map((box) => box.clientHeight)")
        assert max(heights) <= 720  # long tables scroll inside their own box
        if width == 1400:  # and none of three optimizers is wider than its box there
            wider = "boxes => boxes.filter((box) => box.scrollWidth > box.clientWidth).map((box) => box.innerText)"
            assert page.locator(".scroll:visible").evaluate_all(wider) == []


def test_it_can_be_read_on_dark_and_on_light_paper(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page, colour_scheme="dark").page
    plot_of(page, "sorted-losses")
    dark = check_colours(page)
    page.emulate_media(color_scheme="light")
    line = "getComputedStyle(document.querySelector('.sorted-losses .js-line')).stroke"
    wait_until(page, f"!{sorted(dark)}.includes({line})")
    light = check_colours(page)
    assert dark.isdisjoint(light)


def check_colours(page: Page) -> set[str]:
    """Everything has enough contrast to the paper; returns the lines' colours, which are those of the legend."""
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for text in (".sentence", ".key", "td", "th", "dt", "footer", ".contents a", ".empty", "td.none"):
        ink = page.locator(text).first.evaluate("element => getComputedStyle(element).color")
        assert contrast(ink, paper) >= 4.5, text
    for text in (".sorted-losses .xtick text", ".sorted-losses .ytitle", ".sorted-losses .annotation text"):
        ink = page.locator(text).first.evaluate("element => getComputedStyle(element).fill")
        assert contrast(ink, paper) >= 4.5, text
    strokes = "lines => lines.map((line) => getComputedStyle(line).stroke)"
    lines = set(page.locator(".sorted-losses").first.locator(".js-line").evaluate_all(strokes))
    assert lines == set(page.locator(".legend .mark line").evaluate_all(strokes))
    assert len(lines) == 3
    assert min(contrast(line, paper) for line in lines) >= 3
    return lines


def test_an_optimizer_can_be_hidden(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page).page
    first = page.locator(".problem").first
    plot_of(page, "sorted-losses")
    traces = "document.querySelector('.sorted-losses .plot').querySelectorAll('.trace').length"
    button = first.locator(".legend").get_by_role("button", name="kfac")
    button.click()
    wait_until(page, f"{traces} === 2")
    assert button.get_attribute("aria-pressed") == "false"
    plot_of(page, "learning-curves")
    wait_until(page, "document.querySelector('.learning-curves .plot').querySelectorAll('.trace').length === 2 * 4 + 2")
    plot_of(page, "budget")
    wait_until(page, "document.querySelectorAll('.budget tbody')[0].rows.length === 2")
    second = page.locator(".problem").nth(1).locator(".sorted-losses .plot")
    second.scroll_into_view_if_needed()
    second.locator(".trace").nth(2).wait_for(state="attached")  # only in the first problem
    button.click()
    wait_until(page, f"{traces} === 3")


def test_the_slider_shows_what_a_smaller_budget_would_have(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page).page
    plot_of(page, "budget")
    panel = page.locator(".panel.budget").first
    slider = panel.locator("input[type=range]")
    wait_until(page, "document.querySelector('.budget output').textContent === 'seen at 1 min, tuned for 1 min'")
    table = panel.locator("tbody tr")
    at_the_end = table.all_inner_texts()
    assert at_the_end[0].startswith("1\t")
    ranked = page.locator(".panel.verdict").first.locator("tbody tr td:nth-child(2)").all_inner_texts()
    assert [row.split("\t")[1] for row in at_the_end] == [name.strip() for name in ranked]
    heights = "(p) => Plotly.d3 === undefined && p.data.map((trace) => Math.min(...trace.y))"
    plot = panel.locator(".plot").first
    lowest_at_the_end = plot.evaluate(heights)
    slider.focus()
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    wait_until(page, "document.querySelector('.budget output').textContent === 'seen at 15 s, tuned for 1 min'")
    wait_until(page, f"document.querySelector('.budget tbody').innerText !== {at_the_end!r}.join('\\n')")
    lowest_before = plot.evaluate(heights)
    assert all(before > after for before, after in zip(lowest_before, lowest_at_the_end, strict=True))
    values = [float(row.split("\t")[2]) for row in table.all_inner_texts()]
    assert values == sorted(values)
    assert "lr = " in table.first.inner_text()
    line = panel.locator(".plot").nth(1).evaluate("(p) => p.layout.shapes.at(-1).x0")
    assert line == pytest.approx(15)


def test_one_optimizer_s_hyperparameters_are_shown_at_a_time(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page).page
    panel = page.locator(".panel.hyperparameters").first
    panel.scroll_into_view_if_needed()
    assert panel.locator(".choice:visible h4").all_inner_texts() == ["sgd"]
    panel.get_by_role("button", name="kfac").click()
    shown = panel.locator(".choice:visible")
    assert "kfac fixed: fisher = mc" in shown.locator("h4").first.inner_text()
    slices = shown.locator(".plot").first
    slices.scroll_into_view_if_needed()
    slices.locator(".xtitle").first.wait_for()
    titles = slices.locator("[class^=g-x] text").all_text_contents()
    assert titles == ["lr", "damping/lr", "kl_clip", "statistics_every", "batch_size"]


def test_pointing_at_a_trial_shows_its_configuration(open_page: Open, studied_page: Path) -> None:
    page = open_page(studied_page).page
    point = plot_of(page, "sorted-losses").locator(".trace").last.locator(".point").nth(2)
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = page.locator(".sorted-losses .plot").first.locator(".hoverlayer .hovertext")
    label.wait_for()
    shown = label.first.text_content() or ""
    assert "kfac, trial " in shown
    assert "among the best 21 %" in shown  # the third of 14
    assert "lr = " in shown
    assert "batch_size = " in shown


@pytest.mark.parametrize("panel", ["learning-curves", "verdict"])
def test_pointing_at_a_trace_of_one_trial_shows_its_configuration(
    open_page: Open, studied_page: Path, panel: str
) -> None:
    page = open_page(studied_page).page
    plot = plot_of(page, panel)
    found = plot.evaluate("(p) => p.data.findIndex((trace) => trace.meta.trial !== undefined)")
    plot.evaluate("(p, number) => Plotly.Fx.hover(p, [{ curveNumber: number, pointNumber: 0 }])", found)
    shown = plot.locator(".hoverlayer .hovertext").first.text_content() or ""
    assert ", trial " in shown
    assert "lr = " in shown


def test_strange_names_are_only_names(open_page: Open, tmp_path: Path) -> None:
    database = tmp_path / "evil.db"
    make_database(
        f"sqlite:///{database}",
        name=EVIL,
        problems=(EVIL, ALSO_EVIL),
        optimizers={EVIL: OPTIMIZERS["kfac"], ALSO_EVIL: OPTIMIZERS["sgd"]},
        n_trials=9,
        n_startup=4,
        n_confirm=2,
        message=EVIL,
        choices=(EVIL, ALSO_EVIL),
    )
    watched = open_page(page_of(database))  # a dialog, an error or a request would fail the test at its end
    page = watched.page
    assert page.locator("h1").inner_text().startswith(EVIL)
    assert page.locator("h2").all_inner_texts() == [EVIL, ALSO_EVIL, "All problems"]
    assert [name.strip() for name in page.locator(".legend button").all_inner_texts()] == [EVIL, ALSO_EVIL] * 2
    watched.draw_all()
    assert page.locator("main img").count() == 0
    assert page.locator("main script:not([type='application/json'])").count() == 0
    assert EVIL in page.locator(".panel.health").inner_text()  # what the failed runs said
    page.locator(".legend").get_by_role("button", name=EVIL).first.click()  # the key by which traces are found, too
    wait_until(page, "document.querySelector('.sorted-losses .plot').querySelectorAll('.trace').length === 1")
    page.evaluate("Plotly.Fx.hover(document.querySelector('.sorted-losses .plot'), [{curveNumber: 1, pointNumber: 0}])")
    shown = page.locator(".sorted-losses .hoverlayer .hovertext").first.text_content() or ""
    assert ALSO_EVIL in shown.replace("\u200b", "")
    assert "strange = <" in shown or "strange = </" in shown


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
    watched = open_page(page_of(database), width=700)
    page = watched.page
    watched.draw_all()
    empty = page.locator(".empty").all_inner_texts()
    points = page.locator(".sorted-losses .point")
    if "all_fail" in made:
        assert "No run has ended well (finished trials: 9)." in empty
        assert points.evaluate_all("points => points.map((point) => point.checkVisibility())") == [True] * 9
    elif made["n_made"] == 0:
        assert empty.count("No trial has finished yet.") >= 7
        assert page.locator(".plot").count() == 0
    else:
        assert points.count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


def test_many_optimizers_stay_apart(open_page: Open, tmp_path: Path) -> None:
    database = tmp_path / "many.db"
    optimizers = {f"optimizer_{letter}": OPTIMIZERS["sgd"] for letter in "abcdefghijklmno"}
    make_database(f"sqlite:///{database}", problems=("digits_mlp",), optimizers=optimizers, n_trials=2, n_startup=1)
    watched = open_page(page_of(database), width=700)
    page = watched.page
    looks = (
        plot_of(page, "sorted-losses")
        .locator(".js-line")
        .evaluate_all(
            "lines => lines.map((line) => getComputedStyle(line).stroke + getComputedStyle(line).strokeDasharray)"
        )
    )
    assert len(set(looks)) == 15
    key = page.locator(".batch-size .key .symbol")  # figures without lines have marks of their own
    assert len(set(key.evaluate_all("marks => marks.map((m) => m.innerHTML + getComputedStyle(m).fill)"))) == 15
    page.locator(".hyperparameters .choices button").nth(11).click()
    watched.draw_all()
    assert unreadable(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    ranks = page.locator(".verdict .scroll").first
    assert ranks.evaluate("box => box.scrollHeight <= box.clientHeight + 1")  # the last places are seen, too


def test_failures_do_not_stand_out_as_the_best(open_page: Open, tmp_path: Path) -> None:
    database = tmp_path / "failed.db"
    sgd = {"sgd": OPTIMIZERS["sgd"]}
    made = {"problems": ("digits_mlp",), "optimizers": sgd, "n_trials": 10, "n_startup": 4}
    make_database(f"sqlite:///{database}", all_fail=True, **made)  # type: ignore[arg-type] # settings by name
    watched = open_page(page_of(database))
    watched.draw_all()
    page = watched.page
    maps = page.locator(".hyperparameters .choice:visible .plot[aria-label*=' and ']")
    assert maps.count() == 2
    colours = maps.locator(".point").evaluate_all("marks => marks.map((mark) => getComputedStyle(mark).fill)")
    assert len(colours) == 20
    assert set(colours) == {"rgb(122, 209, 81)"}  # of the last fifth
    assert unreadable(page) == []
