"""What the figures show, without drawing them."""

import itertools
import math
from dataclasses import replace

import pytest

from kftune.analysis.stored.results import FileResults, load_results
from kftune.analysis.trust.health import step_anatomies
from kftune.dashboard.export import make_request
from kftune.dashboard.figures import FIGURES, Request, plot_learning_curves, plot_sorted_losses
from kftune.dashboard.figures._arrays import spread_out, visible
from kftune.dashboard.figures._dimensions import scales
from kftune.dashboard.figures.across_problems import plot_best_regions, plot_performance_profiles
from kftune.dashboard.figures.anatomy import plot_reading, plot_step_anatomy, readings_there
from kftune.dashboard.figures.batch_size import common_updates, has_accumulation, plot_loss_against_batch
from kftune.dashboard.figures.budget import slider_data, studies_over_budget
from kftune.dashboard.figures.hyperparameters import (
    map_pairs,
    plot_map,
    plot_parallel_coordinates,
    plot_slices,
)
from kftune.dashboard.figures.learning_curves import _get_learning_curves_info, measures
from kftune.dashboard.figures.sorted_losses import SYMBOLS, _get_sorted_losses_info
from kftune.dashboard.figures.style import DARK, optimizer_styles, value_axis
from kftune.dashboard.figures.tunability import plot_best_so_far
from kftune.dashboard.trials import trial_tables
from kftune.results import Outcome
from kftune.storage.repository import Repository
from tests.analysis import memory
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
    assert len({style[:2] for style in styles.values()}) == 35
    assert len({(style.colour, style.symbol) for style in styles.values()}) == 35
    # Told apart at the size of a mark: a pentagon or hexagon is a circle there, and a cross is a failure.
    assert not {style.symbol for style in styles.values()} & {"pentagon", "hexagon", "octagon", "x"}
    assert len({styles[name].colour for name in names[:7]}) == 7
    assert all(style.colour in DARK for style in styles.values())


def test_usual_optimizers_look_the_same_in_every_study() -> None:
    assert optimizer_styles(["kfac", "sgd"])["sgd"] == optimizer_styles(["adamw", "foof", "kfac", "mine", "sgd"])["sgd"]


def test_what_no_eye_can_see_is_left_out() -> None:
    x = [i / 9999 for i in range(10_000)]
    y = [math.log(0.01 + value**8) for value in x]
    kinds = [int(i > 9000) for i in range(10_000)]
    kept = visible(x, y, kinds)
    assert kept[:25] == list(range(25))
    assert {9001, 9999} <= set(kept)
    assert 300 < len(kept) < 1000
    width, height = x[-1] - x[0], max(y) - min(y)
    for before, after in itertools.pairwise(kept):  # nowhere is a visible step skipped
        assert after == before + 1 or (
            x[after - 1] - x[before] < width / 400 and abs(y[after - 1] - y[before]) < height / 400
        )
    assert visible(x[:100], y[:100], kinds[:100]) == list(range(100))


@pytest.mark.parametrize(("n", "most"), [(3, 10), (10, 10), (1000, 60), (61, 60)])
def test_of_many_ranked_things_the_first_few_are_all_kept(n: int, most: int) -> None:
    kept = spread_out(n, most)
    assert len(kept) == len(set(kept)) == min(n, most)
    assert kept[: most // 8] == list(range(min(n, most // 8)))
    assert kept[-1] == n - 1
    # Not so many that the front looks denser than it is: the best tenth is hardly more than a fifth of the marks.
    assert sum(i < n / 10 for i in kept) <= max(0.22 * len(kept), 1)


@pytest.mark.parametrize(
    ("values", "dtick"),
    [
        ([2.0, 2.05], "L1"),
        ([0.136, 0.161], "L0.005"),
        ([1.0, 5.0], "L1"),
        ([1.0, 6.0], "D2"),
        ([1e-4, 1.0], 1),
        ([1e-9, 10.0], 2),
    ],
)
def test_a_logarithmic_axis_has_a_few_round_ticks(values: list[float], dtick: str | int) -> None:
    axis = value_axis(values)
    assert (axis["type"], axis.get("dtick")) == ("log", dtick)


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


def test_slices_show_the_box_as_it_was_sampled(file: FileResults) -> None:
    kfac = file.of_problem(file.problems[0])[2]
    by_name = {scale.name: scale for scale in scales(kfac)}
    assert list(by_name) == ["lr", "damping/lr", "kl_clip", "statistics_every", "batch_size"]
    assert by_name["damping/lr"].hyperparameter == "damping"
    assert by_name["lr"].edges() == (1e-4, 10.0)
    assert by_name["lr"].place(1e-4) == 0
    assert by_name["lr"].place(10**-1.5) == pytest.approx(0.5)
    assert map_pairs(kfac) == [("lr", "damping/lr"), ("lr", "batch_size")]
    figure = plot_slices(kfac, optimizer_styles(file.optimizers)["kfac"])
    assert figure is not None
    assert [trace.xaxis for trace in figure.data] == ["x", "x2", "x3", "x4", "x5"]
    assert len(figure.layout.shapes) == 10
    assert figure.layout.xaxis2.title.text == "damping/lr"


def test_values_outside_of_the_box_widen_the_axis(repository: Repository) -> None:
    add_trial(repository, KFAC, 0, [result(0.5)], value=0.5, lr=1e-3)
    add_trial(repository, KFAC, 1, [result(0.4)], value=0.4, lr=1.0)
    (study, _) = small(repository).studies
    box = {"dimensions": {"lr": {"kind": "float", "low": 0.01, "high": 1.0, "log": True}}, "fixed": {}}
    (lr,) = scales(replace(study, record=replace(study.record, space=box)))
    assert (lr.low, lr.high, lr.edges()) == (1e-3, 1.0, ())  # no edge is drawn where it was not one


def test_equal_updates_leave_out_who_made_fewer(file: FileResults) -> None:
    problem = file.problems[0]
    updates = common_updates(file, problem)
    well = [
        t for s in file.of_problem(problem) for t in s.ranked() if all(r.result.outcome == "completed" for r in t.runs)
    ]
    made = [min(r.result.updates for r in t.runs) for t in well]
    assert sum(n >= updates for n in made) / len(made) == pytest.approx(0.75, abs=0.05)
    figure = plot_loss_against_batch(file, problem, batch="effective_batch_size", at_updates=updates)
    assert figure is not None
    assert sum(len(trace.x) for trace in figure.data) == sum(n >= updates for n in made)
    assert f"after {updates} updates" in figure.layout.yaxis.title.text


def test_phases_of_a_step_add_up(file: FileResults) -> None:
    figure = plot_step_anatomy(file, file.problems[0])
    assert figure is not None
    found = {a.optimizer: a for a in step_anatomies(file) if a.problem == file.problems[0]}
    for i, name in enumerate(figure.data[0].y):
        whole = sum(trace.x[i] for trace in figure.data)
        assert whole == pytest.approx(1000 * found[name].seconds_per_update)


def test_readings_are_those_of_the_best_trial(file: FileResults) -> None:
    problem = file.problems[0]
    assert readings_there(file, problem) == ["kl_clip_active", "damping", "momentum", "lr"]
    figure = plot_reading(file, problem, "damping")
    assert figure is not None
    (trace,) = figure.data
    assert trace.meta["optimizer"] == "kfac"
    assert trace.y[0] == pytest.approx(0.1)
    assert trace.y[-1] == pytest.approx(0.1 * math.exp(-4))


def test_the_best_lies_where_it_was_planted_on_both_problems(file: FileResults) -> None:
    figure = plot_best_regions(file, "lr")
    assert figure is not None
    assert {trace.meta["optimizer"] for trace in figure.data} == {"sgd", "adamw", "kfac"}
    assert all(1e-3 < trace.x[1] < 10 for trace in figure.data)
    assert plot_best_regions(file, "nothing") is None


@pytest.mark.parametrize("name", FIGURES.names())
def test_every_figure_of_the_catalogue_is_drawn(confirmed: FileResults, name: str) -> None:
    kind = FIGURES.get(name)
    problem = "fashion_mnist_mlp"  # the one with an accuracy
    anything = Request(file=confirmed, problem=problem, optimizer="kfac", styles={})
    of = next(iter(kind.choices(anything)), None)
    figure = kind.plot(make_request(name, confirmed, problem=problem, optimizer="kfac", of=of))
    assert figure is not None
    axes = [*figure.select_xaxes(), *figure.select_yaxes()]
    assert all(axis.title.text for axis in axes[:1])
    assert {trace.meta["study"] for trace in figure.data if trace.meta and "study" in trace.meta} <= {
        study.record.study for study in confirmed.studies
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 2.0], {"type": "log", "dtick": "D2"}),
        ([0.0, 2.0], {"type": "linear"}),
        ([-1.0, 2.0], {"type": "linear"}),
        ([1e-6, 1e3], {"type": "log", "dtick": 2}),
        ([1.0, 2.0], {"type": "log"}),
        ([2.0, 2.0], {"type": "log", "range": [0.0, pytest.approx(math.log10(4))]}),
    ],
)
def test_values_are_drawn_by_their_logarithm_if_they_have_one(values: list[float], expected: dict[str, object]) -> None:
    axis = value_axis(values)
    assert {key: axis.get(key) for key in expected} == expected
    assert ("range" in axis) == ("range" in expected)


def batches(params: dict[str, object], *, examples: int) -> tuple[list[float], list[float], str]:
    """Places on the two x axes, and the title of the second, of one trial of 100 updates over ``examples`` examples."""
    made = memory.run(1.0)
    ran = replace(made, result=replace(made.result, updates=100, examples=examples))
    one = memory.file(memory.study([memory.trial(0, [1.0], params=params, runs=[ran])]))
    figures = [plot_loss_against_batch(one, "digits", batch=b) for b in ("batch_size", "effective_batch_size")]
    first, second = ([float(x) for x in figure.data[0].x] for figure in figures)
    assert has_accumulation(one, "digits") == (first != second)
    return first, second, figures[1].layout.xaxis.title.text


def test_accumulated_micro_batches_are_one_effective_batch() -> None:
    title = "effective batch size (examples per update)"
    accumulated = batches({"batch_size": 64, "accumulation": 4}, examples=25_600)
    assert accumulated == ([64.0], [256.0], title)
    assert batches({"batch_size": 64, "effective_batch_size": 256}, examples=25_600) == accumulated
    assert batches({"batch_size": 64}, examples=6_400) == ([64.0], [64.0], title)
    assert batches({"effective_batch_size": 256}, examples=25_600) == ([256.0], [256.0], title)


def test_a_growing_batch_stands_at_its_mean() -> None:
    title = "effective batch size (examples per update; the mean where it grows)"
    growing = {"batch_size": 64, "full_batch_at": 500}
    assert batches(growing, examples=30_000) == ([300.0], [300.0], title)
    assert batches(growing | {"accumulation": 2}, examples=30_000) == ([64.0], [300.0], title)


def test_a_trial_with_a_failed_run_says_nothing_about_its_batch() -> None:
    params = {"batch_size": 64}
    half = [memory.run(0.9, trial=1), memory.run(None, trial=1, repeat=1, outcome=Outcome.DIVERGED)]
    trials = [
        memory.trial(0, [1.0, 1.2], params=params),
        memory.trial(1, [0.9, memory.UNTRAINED], params=params, runs=half),
    ]
    figure = plot_loss_against_batch(memory.file(memory.study(trials)), "digits", batch="batch_size")
    assert figure is not None
    assert figure.data[0].customdata.tolist() == [0]


def test_performance_profiles_go_on_to_the_slowest() -> None:
    fast, slow = [(1.0, 0.5), (12.0, 0.5)], [(1.0, 1.9), (12.0, 0.5)]
    studies = [
        memory.study(
            [memory.trial(0, [0.5], runs=[memory.run(0.5, curve=curve)])], optimizer=optimizer, problem=problem
        )
        for problem in ("digits", "letters")
        for optimizer, curve in (("sgd", fast), ("kfac", slow))
    ]
    figure = plot_performance_profiles(memory.file(*studies))
    assert figure is not None
    shares = {trace.meta["optimizer"]: dict(zip(trace.x, trace.y, strict=True)) for trace in figure.data}
    assert shares["kfac"][1.0] == 0
    assert shares["kfac"][12.0] == 100
    low, high = figure.layout.xaxis.range
    assert 10**low < 1
    assert 12 < 10**high < 13
    assert figure.layout.shapes[0].x0 == 4  # what is beyond does not score


def test_many_trials_are_spread_by_their_logarithm() -> None:
    def x_axis(n: int) -> tuple[str | None, tuple[float, ...] | None]:
        trials = [memory.trial(i, [1 / (i + 1)]) for i in range(n)]
        figure = plot_best_so_far(memory.file(memory.study(trials)), "digits", against="trials")
        assert figure is not None
        return figure.layout.xaxis.type, figure.layout.xaxis.range

    assert x_axis(20) == (None, (0, 20.4))
    assert x_axis(300) == ("log", None)


@pytest.mark.parametrize("n", [5, 200])
def test_maps_and_parallel_coordinates_have_a_key(n: int) -> None:
    params = [{"lr": 10 ** (-i / n), "damping": 10 ** (-i / n)} for i in range(n)]
    edges = {"kind": "float", "low": 0.1, "high": 1.0, "log": True}
    space = {"dimensions": {"lr": edges, "damping": edges}, "fixed": {}}
    study = memory.study([memory.trial(i, [1.0 + i], params=params[i]) for i in range(n)], space=space)
    drawn = {pair: plot_map(study, pair) for pair in map_pairs(study)}
    for figure in (plot_parallel_coordinates(study), *drawn.values()):
        assert figure is not None
        names = [trace.name for trace in figure.data]
        assert names == ["worst fifth or failed", "fourth", "third", "second", "best fifth"]
        assert figure.layout.showlegend
    assert drawn
