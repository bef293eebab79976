import json

import pytest

from kftune.analysis.stored.results import load_results
from kftune.analysis.tuning.best import best_configurations
from kftune.storage.repository import Repository
from tests.analysis.builders import UNTRAINED


def test_the_best_configurations_of_every_study(filled: Repository) -> None:
    kfac, sgd = best_configurations(load_results(filled), top=4)
    assert [(best.rank, best.trial, best.value) for best in kfac.configurations] == [
        (1, 1, 0.2),
        (2, 0, 0.6),
        (3, 5, 0.6),
        (4, 2, pytest.approx((0.1 + UNTRAINED) / 2)),
    ]
    assert (sgd.study, sgd.problem, sgd.optimizer, sgd.objective) == ("demo/digits/sgd", "digits", "sgd", "test_loss")
    assert (kfac.n_finished, sgd.n_finished) == (6, 1)
    assert len(sgd.configurations) == 1


def test_a_configuration_tells_how_it_was_found(filled: Repository) -> None:
    kfac, sgd = best_configurations(load_results(filled), top=4)
    first, mixed = kfac.configurations[0], kfac.configurations[3]
    assert first.params == {"lr": 0.3, "fisher": "mc"}
    assert first.sampled == {"lr": 0.3}
    assert (first.updates, first.outcomes, first.is_startup) == (10.0, {"completed": 2}, True)
    assert (mixed.outcomes, mixed.is_startup) == ({"completed": 1, "diverged": 1}, False)
    assert mixed.spread == pytest.approx(UNTRAINED - 0.1)
    assert sgd.configurations[0].run_values == (0.8, 0.9)
    assert (kfac.searched, kfac.fixed) == (("lr",), {"fisher": "mc"})


def test_fewer_are_asked_for(filled: Repository) -> None:
    kfac = best_configurations(load_results(filled), top=2)[0]
    assert [best.trial for best in kfac.configurations] == [1, 0]


def test_nothing_yet(repository: Repository) -> None:
    kfac = best_configurations(load_results(repository))[0]
    assert kfac.configurations == ()
    assert kfac.searched == ()
    assert kfac.n_finished == 0


def test_it_is_plain_data_for_json(filled: Repository) -> None:
    plain = json.loads(json.dumps([best.to_dict() for best in best_configurations(load_results(filled))]))
    assert plain[0]["configurations"][0]["params"] == {"lr": 0.3, "fisher": "mc"}
    assert plain[1]["configurations"][0]["run_values"] == [0.8, 0.9]
    assert plain[1]["configurations"][0]["spread"] == pytest.approx(0.1)
