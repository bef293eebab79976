import numpy as np
import pytest
from scipy import stats

from kftune.analysis.trust.superiority import probability_of_superiority, superiority_matrices
from tests.analysis.memory import file, study, trial


def test_wins_are_counted_seed_by_seed_and_ties_half() -> None:
    found = probability_of_superiority([1, 2, 3, 4], [2, 2, 2, 5])
    assert found is not None
    assert (found.probability, found.n_seeds) == ((1 + 0.5 + 0 + 1) / 4, 4)
    assert probability_of_superiority([], []) is None
    with pytest.raises(ValueError):
        probability_of_superiority([1], [1, 2])


def test_the_interval_is_scipys_where_there_are_no_ties() -> None:
    first, second = [1.0] * 7 + [3.0] * 3, [2.0] * 10
    found = probability_of_superiority(first, second)
    expected = stats.binomtest(7, 10).proportion_ci(method="wilson")
    assert found is not None
    assert found.interval == pytest.approx((expected.low, expected.high))


def test_the_interval_covers_the_truth() -> None:
    rng, truth, covered = np.random.default_rng(0), 0.8, 0
    for _ in range(1000):
        first = np.where(rng.uniform(size=10) < truth, 0.0, 2.0)
        found = probability_of_superiority(first.tolist(), [1.0] * 10)
        assert found is not None
        covered += found.interval[0] <= truth <= found.interval[1]
    assert 0.93 <= covered / 1000 <= 0.98  # shares of ten move in steps


def test_the_matrix_adds_up_to_one_across_its_diagonal() -> None:
    losses = {"sgd": [3.0, 3.0, 1.0], "kfac": [1.0, 2.0, 1.0], "adamw": [2.0, 1.0, 5.0]}
    made = file(*(study([trial(0, [1, 1])], optimizer=name, confirmed={0: values}) for name, values in losses.items()))
    (matrix,) = superiority_matrices(made)
    assert matrix.optimizers == ("sgd", "kfac", "adamw")
    for i in range(3):
        assert matrix.cells[i][i] is None
        for j in range(i):
            one, other = matrix.cells[i][j], matrix.cells[j][i]
            assert one is not None
            assert other is not None
            assert one.probability + other.probability == pytest.approx(1)
    kfac_beats_sgd = matrix.cells[1][0]
    assert kfac_beats_sgd is not None
    assert kfac_beats_sgd.probability == pytest.approx(2.5 / 3)
