"""The test functions' known optima, and the statistics over searches."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest

from kftune.errors import UsageError
from kftune.study.benchmarking.benchmark import Contestant, Regret, comparisons, measure_regrets, measure_seconds, ranks
from kftune.study.benchmarking.test_functions import _HARTMANN_BEST, LEAST, TEST_FUNCTIONS, UNTRAINED, _hartmann
from kftune.study.samplers import make_sampler
from kftune.study.samplers.coordinates import distributions, from_unit


@pytest.mark.parametrize("name", list(TEST_FUNCTIONS))
def test_no_configuration_is_better_than_the_least(name: str) -> None:
    function = TEST_FUNCTIONS[name]
    instance = function.instance(3)
    study, losses, seen = optuna.create_study(), [], []
    for number in range(300):
        study.sampler = make_sampler(
            "random", options={}, space=function.space, seed=0, trial_number=number, n_startup_trials=1
        )
        trial = study.ask()
        function.space.suggest(trial)
        losses.append(instance.loss(trial.params))
        seen.append(instance.observe(trial.params, trial_number=number))
        assert instance.observe(trial.params, trial_number=number) == seen[-1]
    assert LEAST <= min(losses) < 10 * LEAST
    assert max(losses) == max(seen) == UNTRAINED
    diverged = np.array(losses) == UNTRAINED
    assert 0.2 < diverged.mean() < 0.8
    assert np.all(np.array(seen)[diverged] == UNTRAINED)
    inside = (np.array(seen) < UNTRAINED) & ~diverged
    spread = np.std(np.log(np.array(seen)[inside] / np.array(losses)[inside]))
    assert spread == pytest.approx(function.noise, rel=0.25)  # of about 150 draws, whose own deviation is 6%


@pytest.mark.parametrize("name", ["sgd", "kfac", "curved"])
def test_the_least_is_at_the_optimum(name: str) -> None:
    function = TEST_FUNCTIONS[name]
    generator = np.random.default_rng(5)
    place = {key: generator.uniform(0.2, 0.8) for key in distributions(function.space)}
    best = {key: from_unit(d, place[key]) for key, d in distributions(function.space).items()}
    # A batch size is a whole number, off by at most half.
    assert function.instance(5).loss(best) == pytest.approx(LEAST, rel=1e-3)
    assert function.instance(6).loss(best) > 1.05 * LEAST


def test_hartmanns_optimum_is_the_published_one() -> None:
    assert _hartmann(_HARTMANN_BEST) == pytest.approx(-3.32236801141551, abs=1e-8)


def _regret(function: str, contestant: str, seed: int, regret: float) -> Regret:
    return Regret(function=function, contestant=contestant, seed=seed, n_trials=50, regret=regret, seconds=1.0)


REGRETS = [
    *(_regret("f", "a", seed, 0.1) for seed in range(4)),
    *(_regret("f", "b", seed, regret) for seed, regret in enumerate((0.2, 0.2, 0.05, 0.1))),
    _regret("g", "a", 0, 1e-9),
    _regret("g", "b", 0, 1e-5),
]


def test_ranks_and_paired_comparisons() -> None:
    # On f: a wins twice, loses once, a tie; on g: a wins.
    assert ranks(REGRETS) == {
        "a": pytest.approx((1 + 1 + 2 + 1.5 + 1) / 5),
        "b": pytest.approx((2 + 2 + 1 + 1.5 + 2) / 5),
    }
    on_f, on_g, everywhere = comparisons(REGRETS, contestant="a")
    assert (on_f.function, on_f.other, on_f.n, on_f.wins) == ("f", "b", 4, 2.5 / 4)
    assert on_f.ratio == pytest.approx(2 ** (-1 / 4))  # ½ · ½ · 2 · 1
    # Student's t: mean −¼ log 2, deviation √(11/12)·log 2, 3.18245 = t(0.975, 3).
    half = 3.182446305 * math.sqrt(11 / 12) * math.log(2) / 2
    assert math.log(on_f.high / on_f.ratio) == pytest.approx(half, rel=1e-6)
    assert math.log(on_f.ratio / on_f.low) == pytest.approx(half, rel=1e-6)
    assert (on_g.ratio, on_g.wins, on_g.low) == (1.0, 0.5, 0.0)  # both below a thousandth; one case has no interval
    assert (everywhere.function, everywhere.n) == (None, 5)


def test_cases_that_only_one_searched_do_not_count() -> None:
    more = [*REGRETS, _regret("f", "a", 9, 5.0)]
    assert ranks(more) == ranks(REGRETS)
    assert comparisons(more, contestant="a") == comparisons(REGRETS, contestant="a")


def test_searches_are_reproducible_and_share_their_first_trials() -> None:
    contestants = [Contestant("tpe", "tpe"), Contestant("other", "tpe", {"n_candidates": 2}), Contestant("r", "random")]
    shares: list[float] = []
    first = measure_regrets(
        contestants, functions=["sgd", "branches"], n_seeds=2, n_trials=14, done=lambda r, share: shares.append(share)
    )
    assert len(first) == 12
    assert shares == pytest.approx([(i + 1) / 12 for i in range(12)])
    again = measure_regrets(contestants, functions=["sgd", "branches"], n_seeds=2, n_trials=14, known=first[:-1])
    assert [r.regret for r in again] == [r.regret for r in first]
    short = measure_regrets(contestants, functions=["sgd"], n_seeds=1, n_trials=9)
    at_nine = {round(r.regret, 12) for r in short}
    assert len(at_nine) <= 2  # eight of the nine are common
    with pytest.raises(UsageError, match="no option 'nonsense'"):
        measure_regrets([Contestant("x", "tpe", {"nonsense": 1})], functions=["sgd"], n_seeds=1, n_trials=9)


def test_times_are_those_of_a_suggestion() -> None:
    contestants = [Contestant("random", "random"), Contestant("gpyopt", "gpyopt")]
    found = measure_seconds(contestants, function="sgd", observations=[10, 20], repetitions=2)
    seconds = {(timing.contestant, timing.observations): timing for timing in found}
    assert len(seconds) == 4
    assert seconds["gpyopt", 20].seconds > seconds["random", 20].seconds > 0
    assert seconds["gpyopt", 20].cpu_seconds > 0
    limited = measure_seconds(contestants, function="sgd", observations=[10, 1000], repetitions=1, limit_seconds=60)
    assert ("gpyopt", 1000) not in {(timing.contestant, timing.observations) for timing in limited}
