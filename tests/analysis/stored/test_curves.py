import math

import pytest

from kftune.analysis.stored.curves import repeated_curve
from kftune.results import CurvePoint, RunResult
from tests.storage.builders import run_result


def run(*points: tuple[float, float], accuracy: float | None = None) -> RunResult:
    return run_result(
        curve=tuple(
            CurvePoint(train_seconds=x, update=int(10 * x), train_loss=y / 2, test_loss=y, accuracy=accuracy)
            for x, y in points
        )
    )


def test_one_run_is_itself() -> None:
    curve = repeated_curve([run((0, 4), (1, 2), (2, 1))], across="train_seconds", measure="test_loss")
    assert curve is not None
    assert curve.x == (0, 1, 2)
    assert curve.mean == curve.low == curve.high == (4, 2, 1)


def test_runs_meet_at_common_places() -> None:
    # Two straight lines, evaluated at different times: 4 - x on [0, 3] and 6 - 2x on [0.5, 2.5].
    one, other = run((0, 4), (1, 3), (3, 1)), run((0.5, 5), (1.5, 3), (2.5, 1))
    curve = repeated_curve([one, other], across="train_seconds", measure="test_loss")
    assert curve is not None
    assert curve.x == (0.5, 1, 1.5, 2.5)
    for i, x in enumerate(curve.x):
        lines = (4 - x, 6 - 2 * x)
        assert curve.mean[i] == pytest.approx(sum(lines) / 2)
        assert curve.low[i] == pytest.approx(min(lines))
        assert curve.high[i] == pytest.approx(max(lines))


def test_what_is_not_finite_is_left_out() -> None:
    broken = run((0, 4), (1, math.nan), (2, 2), (3, math.inf))
    curve = repeated_curve([broken], across="train_seconds", measure="test_loss")
    assert curve is not None
    assert (curve.x, curve.mean) == ((0, 2), (4, 2))


def test_it_can_be_drawn_across_updates_and_for_other_measures() -> None:
    runs = [run((0, 4), (1, 2), accuracy=0.5)]
    by_update = repeated_curve(runs, across="update", measure="train_loss")
    assert by_update is not None
    assert (by_update.x, by_update.mean) == ((0, 10), (2, 1))
    accuracy = repeated_curve(runs, across="update", measure="accuracy")
    assert accuracy is not None
    assert accuracy.mean == (0.5, 0.5)


@pytest.mark.parametrize("runs", [[], [run()], [run((0, 4))], [run((0, math.nan), (1, math.nan), (2, 1))]])
def test_less_than_two_points_are_no_curve(runs: list[RunResult]) -> None:
    assert repeated_curve(runs, across="train_seconds", measure="test_loss") is None


def test_no_accuracy_is_no_curve() -> None:
    assert repeated_curve([run((0, 4), (1, 2))], across="train_seconds", measure="accuracy") is None


def test_a_run_without_points_does_not_spoil_the_others() -> None:
    curve = repeated_curve([run((0, 4), (1, 2)), run((0, 4))], across="train_seconds", measure="test_loss")
    assert curve is not None
    assert curve.mean == (4, 2)
