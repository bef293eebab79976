from typing import Any

import numpy as np
import pytest

from kftune.analysis.stored.results import StudyResults
from kftune.analysis.tuning.gate import HuggedEdge, best_share, hugged_edges
from tests.analysis.memory import study, trial


def made(
    dimension: dict[str, Any],
    values: list[float],
    *,
    name: str = "lr",
    sampled_name: str = "",
    n_train: int | None = None,
) -> StudyResults:
    """30 trials; the best three (losses 0, 1, 2) have ``values``, the others the middle of the box."""
    middle = dimension.get("middle", 0.5)
    space = {"dimensions": {name: {k: v for k, v in dimension.items() if k != "middle"}}, "fixed": {}}
    key = sampled_name or name
    trials = [trial(i, [float(i), float(i)], params={key: values[i] if i < len(values) else middle}) for i in range(30)]
    return study(trials, space=space, n_train=n_train)


LOG = {"kind": "float", "low": 1e-4, "high": 1.0, "log": True, "middle": 0.01}


def only(found: list[HuggedEdge]) -> HuggedEdge:
    (edge,) = found
    return edge


def test_the_best_tenth_at_the_upper_edge_asks_for_a_decade_more() -> None:
    edge = only(hugged_edges(made(LOG, [0.9, 0.8, 0.01])))
    assert (edge.dimension, edge.edge, edge.n_best, edge.box) == ("lr", "high", 3, (1e-4, 1.0))
    assert edge.share == pytest.approx(2 / 3)
    assert edge.wider == (1e-4, 10.0)
    assert edge.is_provisional


def test_at_the_lower_edge_likewise() -> None:
    edge = only(hugged_edges(made(LOG, [1e-4, 1.2e-4, 1.1e-4])))
    assert (edge.edge, edge.share, edge.wider) == ("low", 1.0, (1e-5, 1.0))


def test_in_the_middle_and_with_one_at_each_edge_all_is_well() -> None:
    assert hugged_edges(made(LOG, [0.01, 0.02, 0.005])) == []
    assert hugged_edges(made(LOG, [1e-4, 1.0, 0.01])) == []
    assert hugged_edges(made(LOG, [0.6, 0.6, 0.6])) == []  # 5.5 % below the edge


def test_a_complement_is_named_and_widened_as_in_the_study_file() -> None:
    momentum = {"kind": "float", "low": 0.5, "high": 0.99, "log": True, "complement": True, "middle": 0.1}
    edge = only(hugged_edges(made(momentum, [0.0101, 0.01, 0.0102], name="momentum", sampled_name="1-momentum")))
    assert (edge.dimension, edge.sampled_name, edge.edge) == ("momentum", "1-momentum", "high")
    assert edge.wider == pytest.approx((0.5, 0.999))
    edge = only(hugged_edges(made(momentum, [0.5, 0.49, 0.499], name="momentum", sampled_name="1-momentum")))
    assert (edge.edge, edge.wider) == ("low", (0.0, 0.99))


def test_momentum_stays_below_one() -> None:
    momentum = {"kind": "float", "low": 0.0, "high": 0.99, "log": False}
    edge = only(hugged_edges(made(momentum, [0.98, 0.985, 0.99], name="momentum")))
    assert edge.wider == pytest.approx((0.0, 0.999))


def test_an_edge_that_is_a_limit_of_the_hyperparameter_makes_nothing_provisional() -> None:
    momentum = {"kind": "float", "low": 0.0, "high": 0.99, "log": False}
    edge = only(hugged_edges(made(momentum, [0.0, 0.001, 0.002], name="momentum")))
    assert (edge.edge, edge.wider, edge.is_provisional) == ("low", None, False)
    period = {"kind": "int", "low": 1, "high": 100, "log": True, "middle": 10}
    edge = only(hugged_edges(made(period, [1, 1, 1], name="inverses_every")))
    assert edge.wider is None


def test_whole_numbers() -> None:
    size = {"kind": "int", "low": 32, "high": 2000, "log": True, "middle": 256}
    edge = only(hugged_edges(made(size, [1999, 2000, 1900], name="batch_size")))
    assert edge.wider == (32, 20_000)
    assert edge.note == "at most the number of training examples"
    # One of three values is at an edge by chance too often to say anything.
    few = {"kind": "int", "low": 1, "high": 3, "log": False, "middle": 2}
    assert hugged_edges(made(few, [3, 3, 3], name="depth")) == []


@pytest.mark.parametrize(("n_train", "wider"), [(100_000, (32, 20_000)), (5_000, (32, 5_000)), (2_000, None)])
def test_no_batch_is_larger_than_the_training_set(n_train: int, wider: tuple[float, float] | None) -> None:
    size = {"kind": "int", "low": 32, "high": 2000, "log": True, "middle": 256}
    edge = only(hugged_edges(made(size, [1999, 2000, 1900], name="batch_size", n_train=n_train)))
    assert (edge.wider, edge.is_provisional, edge.note) == (wider, wider is not None, "")
    below = only(hugged_edges(made(size, [32, 32, 33], name="batch_size", n_train=n_train)))
    assert below.wider == (3, 2000)
    period = only(hugged_edges(made(size, [1999, 2000, 1900], name="inverses_every", n_train=n_train)))
    assert period.wider == (32, 20_000)  # not a batch


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(
    ("name", "low", "high"), [("batch_size", 16, 64), ("batch_size", 1, 64), ("lr", 1, 9), ("lr", 0, 9), ("lr", -1, 9)]
)
def test_what_is_positive_in_its_box_is_positive_in_a_wider_one(
    kind: str, log: bool, name: str, low: int, high: int
) -> None:
    if log and low <= 0:
        return
    box = {"kind": kind, "low": low, "high": high, "log": log, "middle": (low + high) / 2}
    for edge in hugged_edges(made(box, [low, low, low], name=name)):
        if edge.wider is None:
            continue
        assert edge.wider[0] < low
        assert edge.wider[0] > 0 or low <= 0
        assert name != "batch_size" or edge.wider[0] == int(edge.wider[0]) >= 1


def test_a_ratio_is_widened_as_a_ratio() -> None:
    damping = LOG | {"relative_to": "lr", "high": 10.0}
    space = {"dimensions": {"lr": {k: v for k, v in LOG.items() if k != "middle"}, "damping": damping}, "fixed": {}}
    space["dimensions"]["damping"].pop("middle")
    trials = [trial(i, [float(i)] * 2, params={"lr": 0.01, "damping/lr": 9.0}) for i in range(5)]
    edge = only(hugged_edges(study(trials, space=space)))
    assert (edge.dimension, edge.sampled_name, edge.wider) == ("damping", "damping/lr", (1e-4, 100.0))


def test_conditional_dimensions_are_judged_where_they_are_active() -> None:
    space = {"dimensions": {"lr": {k: v for k, v in LOG.items() if k != "middle"}}, "fixed": {}}
    absent = [trial(i, [float(i)] * 2, params={} if i else {"lr": 1.0}) for i in range(30)]
    assert hugged_edges(study(absent, space=space)) == []


def test_too_few_trials_are_not_judged() -> None:
    assert best_share(study([trial(0, [1, 1]), trial(1, [1, 1])])) == []
    assert len(best_share(study([trial(i, [1, 1]) for i in range(31)]))) == 4
    assert hugged_edges(study([trial(0, [1, 1], params={"lr": 1.0}), trial(1, [1, 1], params={"lr": 1.0})])) == []


def test_a_box_that_is_wide_enough_is_seldom_flagged() -> None:
    """Where the loss does not depend on a hyperparameter, two of three are at one edge in 2 · 0.7 % of all studies."""
    rng, flagged = np.random.default_rng(0), 0
    for _ in range(250):
        trials = [trial(i, [float(i)] * 2, params={"lr": float(10 ** rng.uniform(-4, 0))}) for i in range(30)]
        flagged += bool(hugged_edges(study(trials)))
    assert flagged / 250 < 0.035


@pytest.mark.parametrize("n_values", [5, 9])
def test_of_a_grid_a_value_at_the_edge_is_one_of_few(n_values: int) -> None:
    """Two of the best three at one edge: 1 in 140 in a continuous box, 1 in 10 (of 5 values) or 30 (of 9) in a grid."""
    values = np.geomspace(1e-4, 1.0, n_values).tolist()
    lrs = [values[-1], values[-1], *values[:-1] * 4][:30]
    trials = [trial(i, [float(i)] * 2, params={"lr": lr}) for i, lr in enumerate(lrs)]
    assert hugged_edges(study(trials, config={"sampler": {"name": "grid"}})) == []
    assert only(hugged_edges(study(trials, config={"sampler": {"name": "random"}}))).edge == "high"


def test_a_grid_whose_best_all_lie_at_an_edge_is_provisional() -> None:
    values = np.geomspace(1e-4, 1.0, 9).tolist()
    trials = [trial(i, [float(i)] * 2, params={"lr": lr}) for i, lr in enumerate([1.0] * 3 + values[:-1] * 3)]
    assert only(hugged_edges(study(trials, config={"sampler": {"name": "grid"}}))).wider == (1e-4, 10.0)
