"""What panels say, and where their axes end, by what there is to draw."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kftune.analysis.stored.results import FileResults
from kftune.dashboard.figures.machine import plot_machine
from kftune.dashboard.figures.style import optimizer_styles, value_axis
from kftune.dashboard.figures.verdict import plot_verdict
from kftune.dashboard.panels import PANELS, Subject
from kftune.dashboard.parts import Panel, Table
from kftune.results import Calibration
from tests.analysis import memory

ONLY_A_PART = "Of many trials only a part is drawn."


def panel_of(file: FileResults, key: str) -> Panel:
    subject = Subject(file, "digits", optimizer_styles(file.optimizers))
    return PANELS.get(key).make(subject)


def with_trials(n: int) -> FileResults:
    return memory.file(memory.study([memory.trial(i, [1 + i / n], params={"batch_size": 32 + i}) for i in range(n)]))


@pytest.mark.parametrize(("key", "most"), [("batch-size", 300), ("hyperparameters", 120)])
def test_a_panel_says_when_it_draws_only_a_part_of_the_trials(key: str, most: int) -> None:
    assert ONLY_A_PART not in panel_of(with_trials(most), key).sentence
    assert panel_of(with_trials(most + 1), key).sentence.endswith(ONLY_A_PART)


@pytest.mark.parametrize(
    ("n", "end"),
    [(1, "Each optimizer's best configuration: mean and range over its repeats that ended well."),
     (2, "thin: the next."), (3, "thin: the next 2."), (9, "thin: the next 3.")],
)  # fmt: skip
def test_learning_curves_speak_of_as_many_as_there_are(n: int, end: str) -> None:
    assert panel_of(with_trials(n), "learning-curves").sentence.endswith(end)


def test_the_scores_of_performance_profiles_are_shown() -> None:
    fast, slow, never = [(1.0, 0.5)], [(2.0, 0.5)], [(2.0, 0.9)]
    curves = {
        ("digits", "sgd"): fast, ("digits", "kfac"): slow, ("digits", "foof"): never,
        ("letters", "sgd"): slow, ("letters", "kfac"): slow, ("letters", "foof"): never,
    }  # fmt: skip
    studies = [
        memory.study(
            [memory.trial(0, [curve[-1][1]], runs=[memory.run(curve[-1][1], curve=curve)])],
            optimizer=optimizer,
            problem=problem,
        )
        for (problem, optimizer), curve in curves.items()
    ]
    *_, scores = panel_of(memory.file(*studies), "across-problems").parts
    assert isinstance(scores, Table)
    assert [cell.text for cell in scores.header] == ["optimizer", "score", "targets reached"]
    # Twice as slow on one of two problems: of the stretch from 1 to 4, one third lacks one half.
    assert [[cell.text for cell in row] for row in scores.rows] == [
        ["sgd", "1", "2 of 2"],
        ["kfac", "0.83", "2 of 2"],
        ["foof", "0", "0 of 2"],
    ]


def test_an_arrow_stands_where_an_interval_goes_beyond_the_figure() -> None:
    narrow, wide = [0.40, 0.41, 0.39], [0.1, 0.9]  # the second from -4.6 to 5.6
    studies = [
        memory.study([memory.trial(0, losses)], optimizer=optimizer, confirmed={0: losses})
        for optimizer, losses in (("sgd", narrow), ("kfac", wide))
    ]
    figure = plot_verdict(memory.file(*studies), "digits")
    assert figure is not None
    bars = {trace.meta["optimizer"]: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert bars["sgd"].marker.size == (0, 0)
    assert bars["kfac"].marker.size == (12, 12)
    assert bars["kfac"].marker.symbol == ("arrow-left", "arrow-right")
    assert list(bars["kfac"].x) == pytest.approx([10**end for end in figure.layout.xaxis.range])


def test_both_limits_of_the_machines_speed_lie_inside_of_the_figure() -> None:
    usual = Calibration(train_seconds=(0.0, 2.0), seconds=(1.0, 1.0), reference=1.0)
    run = memory.run(0.5, calibration=usual)
    config = {"budget": {"seconds": 2.0, "tolerance": 0.25}}
    figure = plot_machine(memory.file(memory.study([memory.trial(0, [0.5], runs=[run])], config=config)))
    assert figure is not None
    low, high = figure.layout.yaxis.range
    assert low < 1 / 1.25 < 1.25 < high


def test_a_long_axis_has_more_labels() -> None:
    assert (value_axis([0.2, 0.9])["dtick"], value_axis([0.2, 0.9], n_labels=8)["dtick"]) == ("L0.2", "L0.1")


def test_the_health_panel_tells_what_was_done_to_the_parameters() -> None:
    told = memory.run(0.5)
    told = replace(told, result=replace(told.result, treatments={"SGD": 6, "Kronecker-factored": 94}))
    file = memory.file(
        memory.study([memory.trial(0, [0.5], runs=[told])], optimizer="kfac"),
        memory.study([memory.trial(0, [0.5])], optimizer="sgd"),  # a run from before
    )
    (table,) = [part for part in panel_of(file, "health").parts if getattr(part, "caption", "").startswith("What was")]
    assert isinstance(table, Table)
    assert [[cell.text for cell in row[1:]] for row in table.rows] == [
        ["kfac", "100", "94 % Kronecker-factored; 6.0 % SGD"],
        ["sgd", "–", "–"],
    ]
