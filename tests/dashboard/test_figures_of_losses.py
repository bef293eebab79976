"""Sorted losses, learning curves and the slider over the budget, without drawing them."""

import math

import pytest

from kftune.analysis.stored.results import FileResults, load_results
from kftune.dashboard.figures import plot_learning_curves, plot_sorted_losses
from kftune.dashboard.figures.budget import slider_data, studies_over_budget
from kftune.dashboard.figures.learning_curves import _get_learning_curves_info, measures
from kftune.dashboard.figures.sorted_losses import SYMBOLS, _get_sorted_losses_info
from kftune.dashboard.trials import trial_tables
from kftune.results import Outcome
from kftune.storage.repository import Repository
from tests.analysis.builders import UNTRAINED, add_trial, failed, result
from tests.analysis.conftest import KFAC


def small(repository: Repository) -> FileResults:
    return load_results(repository)[0]


def test_trials_are_sorted_by_value(filled: Repository) -> None:
    info = _get_sorted_losses_info(small(filled), "digits")
    kfac = info.optimizers["kfac"]
    # 0 and 5 are equal and keep their order; the crashed trial has no value and stands last, at the worst there is.
    assert [trial.trial for trial in kfac] == [1, 0, 5, 2, 3, 4]
    assert [trial.value for trial in kfac] == [0.2, 0.6, 0.6, (0.1 + UNTRAINED) / 2, UNTRAINED, UNTRAINED]
    assert [trial.share for trial in kfac] == pytest.approx([n / 6 for n in range(1, 7)])
    assert [trial.is_startup for trial in kfac] == [True, True, False, False, False, False]
    failures = [trial.failure for trial in kfac]
    assert failures == [None, None, None, Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.CRASHED]
    assert (info.untrained, info.objective) == (UNTRAINED, "test_loss")
    assert [trial.value for trial in info.optimizers["sgd"]] == [0.85]


def test_a_failure_comes_after_a_success_of_the_same_value(repository: Repository) -> None:
    add_trial(repository, KFAC, 0, [failed(Outcome.DIVERGED, 1e9)], value=UNTRAINED)
    add_trial(repository, KFAC, 1, [result(3 * UNTRAINED)], value=UNTRAINED)
    kfac = _get_sorted_losses_info(small(repository), "digits").optimizers["kfac"]
    assert [trial.trial for trial in kfac] == [1, 0]


def test_every_started_trial_counts(file: FileResults) -> None:
    for problem in file.problems:
        info = _get_sorted_losses_info(file, problem)
        for trials in info.optimizers.values():
            assert len(trials) == 14
            assert trials[-1].share == 1
            values = [trial.value for trial in trials]
            assert values == sorted(values)


def test_what_a_trial_was_can_be_read(filled: Repository) -> None:
    kfac = trial_tables([small(filled)])["demo/digits/kfac"]
    assert (kfac["optimizer"], kfac["objective"], kfac["names"]) == ("kfac", "test loss", ["lr"])
    assert kfac["trials"][1] == [1, "0.2000", "", "0.3"]
    assert kfac["trials"][4] == [0, "no value", "completed, crashed", "0.1"]
    figure = plot_sorted_losses(small(filled), "digits")
    assert figure is not None
    assert figure.data[0].meta["study"] == "demo/digits/kfac"
    assert list(figure.data[0].customdata) == [1, 0, 5, 2, 3, 4]


def test_nothing_to_sort_is_no_figure(repository: Repository) -> None:
    assert plot_sorted_losses(small(repository), "digits") is None
    add_trial(repository, KFAC, 0, [failed(Outcome.CRASHED)], value=None)
    assert plot_sorted_losses(small(repository), "digits") is None  # there is no value to draw it at


def test_marks_tell_failures_and_start_up_trials(filled: Repository) -> None:
    figure = plot_sorted_losses(small(filled), "digits")
    assert figure is not None
    assert list(figure.data[0].marker.symbol) == ["circle-open", "circle-open", "circle", "x", "square", "diamond"]
    assert len(set(SYMBOLS.values())) == len(SYMBOLS)
    assert figure.layout.yaxis.type == "log"


def test_curves_of_the_best_by_rank(filled: Repository) -> None:
    info = _get_learning_curves_info(small(filled), "digits", across="train_seconds", measure="test_loss", top=3)
    assert [(c.optimizer, c.rank, c.trial) for c in info.curves] == [
        ("kfac", 1, 1),
        ("kfac", 2, 0),
        ("kfac", 3, 5),
        ("sgd", 1, 0),
    ]
    assert info.curves[1].curve.x == (0, 1)
    assert info.curves[1].curve.mean == pytest.approx((UNTRAINED, 0.6))
    assert (info.curves[1].curve.low[1], info.curves[1].curve.high[1]) == (0.5, 0.7)


def test_runs_that_failed_are_not_averaged(filled: Repository) -> None:
    info = _get_learning_curves_info(small(filled), "digits", across="update", measure="test_loss", top=4)
    mixed = info.curves[3]
    assert mixed.trial == 2
    assert (mixed.curve.x, mixed.curve.mean) == ((0, 10), (UNTRAINED, 0.1))
    assert mixed.not_drawn == ("diverged",)


def test_accuracy_is_drawn_where_there_is_one(file: FileResults) -> None:
    assert measures(file, "mnist_autoencoder") == ("test_loss",)
    assert measures(file, "fashion_mnist_mlp") == ("test_loss", "accuracy")
    info = _get_learning_curves_info(file, "fashion_mnist_mlp", across="update", measure="accuracy", top=1)
    assert len(info.curves) == 3
    assert all(50 < curve.curve.mean[-1] <= 100 for curve in info.curves)  # percent


def test_no_success_is_no_figure(repository: Repository) -> None:
    add_trial(repository, KFAC, 0, [failed(Outcome.DIVERGED, 1e9)], value=UNTRAINED)
    figure = plot_learning_curves(small(repository), "digits", across="update", measure="test_loss")
    assert figure is None


def test_an_excursion_does_not_flatten_the_axis(repository: Repository) -> None:
    add_trial(repository, KFAC, 0, [result(1e9, 0.5)], value=0.5)
    figure = plot_learning_curves(small(repository), "digits", across="update", measure="test_loss")
    assert figure is not None
    low, high = figure.layout.yaxis.range
    assert low < math.log10(0.5)
    assert math.log10(UNTRAINED) < high < math.log10(10 * UNTRAINED)


def test_sorted_losses_at_a_place_are_those_of_the_slider(file: FileResults) -> None:
    for problem in file.problems:
        over = studies_over_budget(file, problem)
        data = slider_data(file, problem, over, is_log=True)
        place = len(data["times"]) // 2 - 1
        at = data["times"][place]
        figure = plot_sorted_losses(file, problem, at=at)
        assert figure is not None
        for trace, made in zip(figure.data, data["studies"], strict=True):
            assert sorted(trace.customdata) == sorted(made["numbers"])  # all that were started, crashed ones too
            known = {n: v for n, v in zip(made["numbers"], made["values"][place], strict=True) if not math.isnan(v)}
            drawn = dict(zip(trace.customdata.tolist(), trace.y.tolist(), strict=True))
            assert {n: drawn[n] for n in known} == pytest.approx(known)
            failed = {n for n, t in zip(made["numbers"], made["failedAt"], strict=True) if t <= at}
            marks = zip(trace.customdata, trace.marker.symbol, strict=True)
            assert {n for n, symbol in marks if not symbol.startswith("circle")} == failed
        whole, final = plot_sorted_losses(file, problem, at=60), plot_sorted_losses(file, problem)
        assert whole is not None
        assert final is not None
        for one, other in zip(whole.data, final.data, strict=True):
            assert one.customdata.tolist() == other.customdata.tolist()
            assert one.y == pytest.approx(other.y, rel=1e-6)
            assert one.marker == other.marker


def test_the_last_place_of_the_slider_is_what_the_search_saw(file: FileResults) -> None:
    problem = file.problems[0]
    over = studies_over_budget(file, problem)
    data = slider_data(file, problem, over, is_log=True)
    assert data["times"][-1] == 60
    assert data["places"][-1] == "1 min"
    for study, made in zip(file.of_problem(problem), data["studies"], strict=True):
        values = dict(zip(made["numbers"].tolist(), made["values"][-1].tolist(), strict=True))
        stored = {t.trial.number: t.trial.value for t in study.finished if t.trial.value is not None}
        assert {number: values[number] for number in stored} == pytest.approx(stored, rel=1e-6)
        assert made["best"][-1] == study.ranked()[0].trial.number
        failures = {t.trial.number for t in study.finished if t.failure}
        at_the_end = {n for n, at in zip(made["numbers"].tolist(), made["failedAt"], strict=True) if at <= 60}
        assert at_the_end == failures
