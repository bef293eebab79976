import pytest

from kftune.analysis.ranking.transfer import transfers
from tests.analysis.memory import UNTRAINED, file, study, trial


def params(lr: float) -> dict[str, object]:
    return {"lr": lr, "fisher": "mc"}


A = study([trial(0, [2, 2], params=params(0.1)), trial(1, [1, 1], params=params(0.3))], problem="a")


def test_the_loss_of_the_others_best_configuration_is_looked_up() -> None:
    b = study(
        [
            trial(0, [5, 5], params=params(0.3 * (1 + 1e-12))),
            trial(1, [4, 4], params=params(0.2)),
            trial(2, [9, 9], params=params(0.9)),
        ],
        problem="b",
    )
    there, back = transfers([file(A, b)])
    assert (there.source, there.target, there.source_trial, there.target_trial) == ("a", "b", 1, 0)
    assert (there.loss, there.own_best, there.rank_there, there.n_there) == (5.0, 4.0, 2, 3)
    assert there.regret == pytest.approx((5 - 4) / (UNTRAINED - 4))
    assert (back.source, back.target_trial, back.loss, back.regret) == ("b", None, None, None)


def test_a_neighbour_does_not_stand_for_what_was_not_tried() -> None:
    b = study([trial(0, [5, 5], params=params(0.3001)), trial(1, [5, 5], params={"lr": 0.3})], problem="b")
    assert [found.target_trial for found in transfers([file(A, b)])] == [None, None]
    types = study([trial(0, [5, 5], params={"lr": 0.3, "fisher": True})], problem="b")
    assert transfers([file(A, types)])[0].target_trial is None


def test_several_configurations_over_several_files() -> None:
    b = study([trial(0, [5, 5], params=params(0.1))], problem="b", file_name="later")
    found = transfers([file(A), file(b, name="later")], top=2)
    assert [(t.source_study, t.rank, t.target_trial) for t in found] == [
        ("demo/a/kfac", 1, None),
        ("demo/a/kfac", 2, 0),
        ("later/b/kfac", 1, 0),
    ]


def test_other_optimizers_and_the_same_problem_are_no_transfer() -> None:
    sgd = study([trial(0, [5, 5], params=params(0.3))], problem="b", optimizer="sgd")
    again = study([trial(0, [5, 5], params=params(0.3))], problem="a", file_name="later")
    assert transfers([file(A, sgd), file(again, name="later")]) == []


def test_failed_and_pruned_trials_on_the_other_problem() -> None:
    crashed = study([trial(0, [None], params=params(0.3)), trial(1, [4, 4], params=params(0.7))], problem="b")
    first = transfers([file(A, crashed)])[0]
    assert (first.target_trial, first.loss, first.own_best) == (0, None, 4.0)
    pruned = study([trial(0, [5.0], params=params(0.3), state="pruned")], problem="b")
    first = transfers([file(A, pruned)])[0]
    assert (first.target_trial, first.loss, first.own_best) == (0, None, None)
