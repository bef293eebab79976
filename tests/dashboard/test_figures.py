"""What the figures show, without drawing them."""

import math

import pytest

from kftune.analysis.results import FileResults, load_results
from kftune.dashboard.figures import plot_learning_curves, plot_sorted_losses
from kftune.dashboard.figures._style import DARK, optimizer_styles, value_axis
from kftune.dashboard.figures.learning_curves import _get_learning_curves_info, measures
from kftune.dashboard.figures.sorted_losses import SYMBOLS, _get_sorted_losses_info
from kftune.storage.repository import Repository
from kftune.training.results import Outcome
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
    kfac = _get_sorted_losses_info(small(filled), "digits").optimizers["kfac"]
    assert kfac[0].hover.split("<br>") == [
        "<b>kfac</b>, trial 1 (start-up)",
        "test loss 0.2000, place 1 of 6",
        "lr = 0.3",
        "fisher = mc",
    ]
    assert "no value" in kfac[-1].hover
    assert "runs: completed, crashed" in kfac[-1].hover


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
    assert "1 of 2 runs not drawn: diverged" in mixed.hover


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


def test_an_optimizer_looks_the_same_in_every_figure(file: FileResults) -> None:
    problem = file.problems[0]
    figures = [
        plot_sorted_losses(file, problem),
        plot_learning_curves(file, problem, across="update", measure="test_loss"),
        plot_learning_curves(file, problem, across="train_seconds", measure="test_loss"),
    ]
    styles = optimizer_styles(file.optimizers)
    for figure in figures:
        assert figure is not None
        for trace in figure.data:
            style = styles[trace.meta["optimizer"]]
            assert (trace.fillcolor or trace.line.color) == style.colour


def test_styles_go_by_name_and_differ() -> None:
    names = [f"optimizer {i:02}" for i in range(35)]
    styles = optimizer_styles(names)
    assert styles == optimizer_styles(reversed(names))
    assert len(set(styles.values())) == 35
    assert len({styles[name].colour for name in names[:7]}) == 7
    assert all(style.colour in DARK for style in styles.values())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 2.0], {"type": "log", "dtick": "D2"}),
        ([0.0, 2.0], {"type": "linear"}),
        ([-1.0, 2.0], {"type": "linear"}),
        ([1e-6, 1e3], {"type": "log"}),
        ([1.0, 2.0], {"type": "log"}),
        ([2.0, 2.0], {"type": "log", "range": [0.0, pytest.approx(math.log10(4))]}),
    ],
)
def test_values_are_drawn_by_their_logarithm_if_they_have_one(values: list[float], expected: dict[str, object]) -> None:
    axis = value_axis(values)
    assert {key: axis.get(key) for key in expected} == expected
    assert ("range" in axis) == ("range" in expected)
