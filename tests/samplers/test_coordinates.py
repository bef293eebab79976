"""Distributions as unit coordinates, and uniform numbers that depend on a name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kftune.space import Categorical, Condition, Float, Int, Space
from kftune.study.samplers.coordinates import (
    active_dimensions,
    conditions,
    distributions,
    from_unit,
    to_unit,
    uniform,
)


@pytest.mark.parametrize(
    ("distribution", "value", "coordinate"),
    [
        (FloatDistribution(2.0, 6.0), 3.0, 0.25),
        (FloatDistribution(1e-4, 1.0, log=True), 1e-3, 0.25),
        (FloatDistribution(0.0, 1.0, step=0.25), 0.5, 0.5),
        (IntDistribution(1, 4), 2, 0.375),
        (IntDistribution(1, 7, step=2), 3, 0.375),
        (IntDistribution(1, 99, log=True), 10, math.log(10 / 0.5) / math.log(99.5 / 0.5)),
        (CategoricalDistribution(("a", "b", None, True)), "b", 0.375),
    ],
)
def test_there_and_back(distribution: BaseDistribution, value: Any, coordinate: float) -> None:
    assert to_unit(distribution, value) == pytest.approx(coordinate, abs=1e-12)
    back = from_unit(distribution, coordinate)
    assert back == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(0.1, 0.7),
        FloatDistribution(1e-5, 0.3, log=True),
        IntDistribution(3, 9),
        IntDistribution(16, 4096, log=True),
    ],
)
def test_the_ends_are_the_bounds(distribution: FloatDistribution | IntDistribution) -> None:
    assert from_unit(distribution, 0.0) == distribution.low
    assert from_unit(distribution, 1.0) == distribution.high
    assert to_unit(distribution, distribution.low * 0.5) == 0.0
    assert to_unit(distribution, distribution.high * 2) == 1.0


@pytest.mark.parametrize(
    "distribution", [IntDistribution(1, 5), IntDistribution(1, 9, step=2), CategoricalDistribution(tuple("abcde"))]
)
def test_all_cells_are_equally_wide(distribution: BaseDistribution) -> None:
    values = [from_unit(distribution, (i + 0.5) / 1000) for i in range(1000)]
    assert {values.count(value) for value in values} == {200}


def test_uniform_numbers_are_uniform_and_depend_on_each_part() -> None:
    numbers = np.array([uniform(seed, trial, name) for seed in range(5) for trial in range(40) for name in "abcde"])
    assert len(set(numbers)) == 1000
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # 1000 uniform numbers: the mean's standard deviation is 0.009, a tenth's count's is 9.5; four of each.
    assert abs(numbers.mean() - 0.5) < 0.037
    assert np.abs(np.histogram(numbers, 10, (0, 1))[0] - 100).max() < 38


def test_distributions_are_those_that_the_space_asks_for() -> None:
    space = Space(
        {
            "lr": Float(low=1e-3, high=1.0, log=True),
            "damping": Float(low=0.1, high=10.0, log=True, relative_to="lr"),
            "decay": Float(low=0.9, high=0.999, log=True, complement=True),
            "n": Int(low=1, high=8),
            "kind": Categorical(choices=("a", "b")),
            "a_only": Float(low=0.0, high=1.0, when=Condition("kind", ("a",))),
        }
    )
    assert distributions(space) == {
        "lr": FloatDistribution(1e-3, 1.0, log=True),
        "damping/lr": FloatDistribution(0.1, 10.0, log=True),
        "1-decay": FloatDistribution(0.001, 0.1, log=True),
        "n": IntDistribution(1, 8),
        "kind": CategoricalDistribution(("a", "b")),
        "a_only": FloatDistribution(0.0, 1.0),
    }
    assert conditions(space) == {"a_only": ("kind", ("a",))}


def test_conditions_on_settled_values_are_settled() -> None:
    when_a, when_b = Condition("kind", ("a",)), Condition("kind", ("b",))
    dependents = {
        "met": Int(low=1, high=3, when=when_a),
        "unmet": Int(low=1, high=3, when=when_b),
        "chained": Int(low=1, high=3, when=Condition("unmet", (1,))),
    }
    fixed = Space(dependents, {"kind": "a"})
    assert active_dimensions(fixed) == {"met": Int(low=1, high=3)}
    assert conditions(fixed) == {}
    one_choice = Space({"kind": Categorical(choices=("a",)), **dependents})
    assert list(active_dimensions(one_choice)) == ["kind", "met"]
    assert conditions(one_choice) == {}
