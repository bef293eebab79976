import math

import numpy as np
import pytest

from kftune.analysis.stored.results import StudyResults
from kftune.analysis.tuning.spread import ANYWHERE, optimizer_spreads
from tests.analysis.memory import file, study, trial


def tuned(problem: str, optimum: float, *, optimizer: str = "kfac", low: float = 1e-4, seed: int = 0) -> StudyResults:
    """40 trials; the loss is the distance of log10(lr) from the optimum."""
    rng = np.random.default_rng(seed)
    space = {"dimensions": {"lr": {"kind": "float", "low": low, "high": 1.0, "log": True}}, "fixed": {}}
    exponents = rng.uniform(math.log10(low), 0, size=40)
    trials = [trial(i, [abs(e - optimum)] * 2, params={"lr": float(10**e)}) for i, e in enumerate(exponents)]
    return study(trials, problem=problem, optimizer=optimizer, space=space)


def test_optima_in_one_place_have_no_spread_and_others_have() -> None:
    same = [tuned(name, -2.0, seed=i) for i, name in enumerate(("a", "b", "c"))]
    apart = [
        tuned(name, o, optimizer="sgd", seed=i) for i, (name, o) in enumerate({"a": -3.5, "b": -2, "c": -0.5}.items())
    ]
    kfac, sgd = optimizer_spreads([file(*same, *apart)])
    assert (kfac.optimizer, sgd.optimizer) == ("kfac", "sgd")
    assert kfac.spread < 0.06
    # Medians near 1/8, 1/2 and 7/8 of the box: standard deviation 3/8.
    assert sgd.spread == pytest.approx(0.375, abs=0.06)
    (dimension,) = sgd.dimensions
    assert [region.problem for region in dimension.regions] == ["a", "b", "c"]
    assert dimension.regions[1].median == pytest.approx(0.5, abs=0.05)
    assert dimension.regions[1].value == pytest.approx(0.01, rel=0.6)
    assert all(region.low <= region.median <= region.high and region.n == 4 for region in dimension.regions)


def test_boxes_of_other_width_are_put_on_one_scale() -> None:
    (kfac,) = optimizer_spreads([file(tuned("a", -1.0), tuned("b", -1.0, low=1e-2, seed=1))])
    (dimension,) = kfac.dimensions
    assert dimension.box == (1e-4, 1.0)
    assert kfac.spread < 0.06


def test_one_problem_has_no_spread() -> None:
    (kfac,) = optimizer_spreads([file(tuned("a", -2.0))])
    assert math.isnan(kfac.spread)
    assert len(kfac.dimensions[0].regions) == 1
    assert optimizer_spreads([file(study([trial(0, [1, 1])]))]) == []


def test_anywhere_is_what_random_places_give() -> None:
    places = np.random.default_rng(0).uniform(size=(20_000, 3))
    assert np.sqrt(np.mean(np.var(places, axis=1, ddof=1))) == pytest.approx(ANYWHERE, rel=0.01)
