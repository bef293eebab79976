"""What every panel of the registry must do."""

from __future__ import annotations

import pytest

from kftune.analysis.stored.results import FileResults
from kftune.dashboard.figures.style import optimizer_styles
from kftune.dashboard.page import render_panels
from kftune.dashboard.panels import PANELS, PanelEntry, Subject, panels_of
from tests.analysis import memory

NOTHING = memory.file(memory.study([], optimizer="sgd"), memory.study([], optimizer="kfac"))
FAILED = memory.file(memory.study([memory.trial(0, [None])]))


def subject_of(file: FileResults) -> Subject:
    return Subject(file, file.problems[0], optimizer_styles(file.optimizers))


@pytest.fixture(params=list(PANELS), ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> PanelEntry:
    value = request.param
    assert isinstance(value, PanelEntry)
    return value


def test_an_entry_says_what_it_is_and_has_a_place_of_its_own(entry: PanelEntry) -> None:
    assert entry.summary
    assert "\n" not in entry.summary
    assert [other.name for other in panels_of(entry.scope) if other.place == entry.place] == [entry.name]


def test_a_panel_has_its_entrys_name_a_title_a_sentence_and_parts(entry: PanelEntry, confirmed: FileResults) -> None:
    panel = entry.make(subject_of(confirmed))
    assert panel.key == entry.name
    assert panel.title
    assert panel.sentence.endswith(".")
    assert panel.parts


def test_it_stands_in_a_page(entry: PanelEntry, confirmed: FileResults) -> None:
    panel = entry.make(subject_of(confirmed))
    page = render_panels([confirmed], [("a problem", [panel])], title="one", database="a database")
    assert f'id="p0-{entry.name}"' in page


@pytest.mark.parametrize("file", [NOTHING, FAILED], ids=["nothing yet", "all failed"])
def test_without_results_it_says_why(entry: PanelEntry, file: FileResults) -> None:
    panel = entry.make(subject_of(file))
    assert panel.parts
    assert render_panels([file], [("a problem", [panel])], title="one", database="a database")
