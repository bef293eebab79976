"""What the figures show, without drawing them."""

import math
from dataclasses import replace

import pytest

from kftune.analysis.stored.results import FileResults, load_results
from kftune.analysis.trust.health import step_anatomies
from kftune.dashboard.export import make_request
from kftune.dashboard.figures import FIGURES, Request, plot_learning_curves, plot_sorted_losses
from kftune.dashboard.figures._dimensions import scales
from kftune.dashboard.figures.across_problems import plot_best_regions, plot_performance_profiles
from kftune.dashboard.figures.anatomy import plot_reading, plot_step_anatomy, readings_there
from kftune.dashboard.figures.batch_size import common_updates, has_accumulation, plot_loss_against_batch
from kftune.dashboard.figures.hyperparameters import (
    map_pairs,
    plot_map,
    plot_parallel_coordinates,
    plot_slices,
)
from kftune.dashboard.figures.style import optimizer_styles
from kftune.dashboard.figures.tunability import plot_best_so_far
from kftune.results import Outcome
from kftune.storage.repository import Repository
from tests.analysis import memory
from tests.analysis.builders import add_trial, result
from tests.analysis.conftest import KFAC


def small(repository: Repository) -> FileResults:
    return load_results(repository)[0]


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
