import math

import pytest

from kftune.analysis.ranking.targets import TimeToTarget, performance_profiles, times_to_target
from kftune.results import Outcome
from kftune.wording import loss
from tests.analysis.memory import UNTRAINED, file, run, study, trial


def with_curve(optimizer: str, *curves: list[tuple[float, float]], problem: str = "digits") -> object:
    runs = [run(None, repeat=r, curve=curve, outcome=Outcome.COMPLETED) for r, curve in enumerate(curves)]
    return study([trial(0, [c[-1][1] for c in curves], runs=runs)], optimizer=optimizer, problem=problem)


FAST = [(0.5, 3.0), (1.0, 1.0), (2.0, 0.9)]
SLOW = [(0.5, 6.0), (1.0, 4.0), (2.0, 2.0)]


def test_it_is_the_first_evaluation_at_or_below_the_target() -> None:
    made = file(with_curve("kfac", FAST), with_curve("sgd", SLOW))
    times = {entry.optimizer: entry.time for entry in times_to_target(made, targets=3.5)}
    assert times == {"kfac": 0.5, "sgd": 2.0}
    times = {entry.optimizer: entry.time for entry in times_to_target(made, targets={"digits": 1.0})}
    assert times == {"kfac": 1.0, "sgd": math.inf}
    assert [entry.time for entry in times_to_target(made, targets=4.0, across="update")] == [5.0, 10.0]
    assert [entry.time for entry in times_to_target(made, targets=UNTRAINED)] == [0.0, 0.0]


def test_the_mean_over_runs_has_to_get_there() -> None:
    made = file(with_curve("kfac", FAST, SLOW))
    (entry,) = times_to_target(made, targets=2.5)
    assert entry.time == 1.0  # (1 + 4) / 2
    assert entry.final == pytest.approx(1.45)


def test_without_a_target_at_least_half_of_the_optimizers_reach_it() -> None:
    made = file(with_curve("kfac", FAST), with_curve("sgd", SLOW), with_curve("adamw", [(2.0, 7.0)]))
    found = times_to_target(made)
    assert {entry.target for entry in found} == {2.0}
    assert [math.isinf(entry.time) for entry in found] == [False, False, True]
    pair = times_to_target(file(with_curve("kfac", FAST), with_curve("sgd", SLOW)))
    assert {entry.target for entry in pair} == {2.0}


def test_confirming_runs_are_used_where_there_are_any() -> None:
    made = study([trial(0, [1.0, 1.0])], confirmed={0: [1.4, 1.6, None]})
    (entry,) = times_to_target(file(made), targets=1.5)
    assert (entry.is_confirmed, entry.final, entry.time) == (True, 1.5, 2.0)


def test_flattered_losses_of_the_search_set_no_target_where_others_are_confirmed() -> None:
    confirmed = study([trial(0, [1.0, 1.0])], confirmed={0: [3.0, 3.0, 3.0]})
    lucky = study([trial(0, [2.0, 2.0])], optimizer="sgd")
    luckier = study([trial(0, [9.0, 9.0])], optimizer="adamw")
    kfac, sgd, _ = found = times_to_target(file(confirmed, lucky, luckier))
    assert {entry.target for entry in found} == {3.0}
    assert (kfac.time, math.isnan(sgd.time), math.isnan(sgd.final)) == (2.0, True, True)
    (profile,) = performance_profiles(found)  # nobody is said not to solve what is not known
    assert profile.optimizer == "kfac"
    assert [entry.time for entry in times_to_target(file(confirmed, lucky), targets=3.0)] == [2.0, 2.0]


def test_at_another_budget_only_its_own_confirming_runs_count() -> None:
    longer = [
        run(None, repeat=r, purpose="confirm", budget_factor=3.0, study="demo/digits/kfac", outcome=Outcome.COMPLETED,
            curve=[(2.0, 4.0), (5.0, 1.0)])
        for r in range(2)
    ]  # fmt: skip
    both = study([trial(0, [1.0, 1.0])], confirmed={0: [2.0, 2.0]}, confirmations=tuple(longer))
    once = study([trial(0, [1.0, 1.0])], optimizer="sgd", confirmed={0: [2.0, 2.0]})
    kfac, sgd = times_to_target(file(both, once), targets=2.0, budget_factor=3)
    assert (kfac.budget_factor, kfac.time, kfac.is_confirmed) == (3, 5.0, True)
    assert (math.isnan(sgd.time), sgd.is_confirmed) == (True, False)
    assert times_to_target(file(once), budget_factor=3) == []


def entry(problem: str, optimizer: str, time: float, *, file_name: str = "demo") -> TimeToTarget:
    return TimeToTarget(
        file_name=file_name, study="", problem=problem, optimizer=optimizer, trial=0, budget_factor=1.0,
        is_confirmed=True, target=1.0, across="train_seconds", time=time, final=1.0,
    )  # fmt: skip


def test_performance_profiles_by_hand() -> None:
    times = [
        *(entry("a", name, time) for name, time in {"kfac": 2.0, "sgd": 4.0}.items()),
        *(entry("b", name, time) for name, time in {"kfac": 9.0, "sgd": 3.0}.items()),
        *(entry("c", name, time) for name, time in {"kfac": 1.0, "sgd": math.inf}.items()),
        *(entry("unsolved", name, math.inf) for name in ("kfac", "sgd")),
    ]
    kfac, sgd = performance_profiles(times)
    assert kfac.ratios == (1.0, 1.0, 3.0)
    assert sgd.ratios == (1.0, 2.0, math.inf)
    assert [kfac.share_within(tau) for tau in (1, 2.9, 3)] == pytest.approx([2 / 3, 2 / 3, 1])
    # The integral of the step function over [1, 4], over 3.
    assert kfac.score == pytest.approx((2 / 3 * 2 + 1 * 1) / 3)
    assert sgd.score == pytest.approx((1 / 3 * 1 + 2 / 3 * 2) / 3)


def test_problems_of_one_name_in_two_files_are_two() -> None:
    times = [entry("a", "kfac", 1.0), entry("a", "sgd", 2.0)]
    times += [entry("a", "kfac", 3.0, file_name="other"), entry("a", "sgd", 1.0, file_name="other")]
    kfac, sgd = performance_profiles(times)
    assert (kfac.ratios, sgd.ratios) == ((1.0, 3.0), (1.0, 2.0))


def test_who_is_missing_on_a_problem_does_not_solve_it() -> None:
    kfac, sgd = performance_profiles([entry("a", "kfac", 2.0), entry("a", "sgd", 2.0), entry("b", "kfac", 1.0)])
    assert (kfac.score, sgd.ratios) == (1.0, (1.0, math.inf))
    assert performance_profiles([entry("a", "kfac", math.inf)]) == []
    assert performance_profiles([]) == []


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 37.0])
@pytest.mark.parametrize("given", [True, False])
def test_never_stands_beside_no_loss_that_reads_like_the_target(scale: float, given: bool) -> None:
    losses = [0.12336, 0.123438, 0.12344, 0.12346, 0.2]
    made = file(*(with_curve(f"o{i}", [(1.0, scale * value)]) for i, value in enumerate(losses)))
    found = times_to_target(made, targets=0.1234 * scale if given else None)
    assert {entry.time < math.inf for entry in found} == {True, False}
    for entry in found:
        is_at = entry.final <= entry.target or loss(entry.final) == loss(entry.target)
        assert (entry.time < math.inf) == is_at, (entry.final, entry.target)
