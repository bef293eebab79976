import math

import pytest

from kftune.objective import point_objective, run_objective
from kftune.results import CurvePoint, Outcome, RunResult


def point(update: int, test_loss: float, accuracy: float | None = None) -> CurvePoint:
    return CurvePoint(
        train_seconds=float(update), update=update, train_loss=test_loss / 2, test_loss=test_loss, accuracy=accuracy
    )


def result(outcome: Outcome, *losses: float) -> RunResult:
    return RunResult(outcome=outcome, curve=tuple(point(i, loss) for i, loss in enumerate(losses)))


def test_completed_run_counts_its_last_loss_even_if_it_was_lower_before() -> None:
    assert run_objective(result(Outcome.COMPLETED, 3.0, 1.0, 1.5), "test_loss") == 1.5


def test_no_loss_counts_as_worse_than_the_untrained_model() -> None:
    assert run_objective(result(Outcome.COMPLETED, 3.0, 900.0), "test_loss") == 3.0
    assert run_objective(result(Outcome.COMPLETED, 3.0, math.nan), "test_loss") == 3.0


@pytest.mark.parametrize("outcome", [Outcome.DIVERGED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT])
def test_failed_configurations_count_as_the_untrained_model(outcome: Outcome) -> None:
    assert run_objective(result(outcome, 3.0, 0.1), "test_loss") == 3.0
    assert run_objective(result(outcome), "test_loss", untrained=2.5) == 2.5
    assert run_objective(result(outcome), "test_loss") is None


def test_a_curve_that_does_not_begin_untrained_has_no_ceiling_of_its_own() -> None:
    made_elsewhere = RunResult(outcome=Outcome.COMPLETED, curve=(point(7, 2.0),))
    assert run_objective(made_elsewhere, "test_loss") == 2.0
    assert run_objective(made_elsewhere, "test_loss", untrained=1.5) == 1.5
    later = RunResult(outcome=Outcome.COMPLETED, curve=(point(7, 2.0), point(9, 3.0)))
    assert run_objective(later, "test_loss") == 3.0
    assert run_objective(RunResult(outcome=Outcome.DIVERGED, curve=(point(7, 2.0),)), "test_loss") is None


def test_a_crash_says_nothing_about_the_configuration() -> None:
    assert run_objective(result(Outcome.CRASHED, 3.0, 0.1), "test_loss", untrained=3.0) is None


def test_other_objectives() -> None:
    p = point(1, 2.0, accuracy=0.75)
    assert point_objective(p, "train_loss") == 1.0
    assert point_objective(p, "test_error") == 0.25
    with pytest.raises(ValueError, match="accuracy"):
        point_objective(point(1, 2.0), "test_error")
