"""The order in which trials are asked for, on a real database, without training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, make_plans
from kftune.study.executors.ledger import Ledger
from kftune.study.sessions.opening import study_records
from kftune.study.sessions.trials import OpenTrial, Trials
from tests.analysis.builders import result
from tests.study.test_runner import config

GRID = {
    "name": "sgd",
    "space": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}},
    "fixed": {"momentum": 0.5, "weight_decay": 0.0, "batch_size": 64},
}


@contextmanager
def trials_of(study: StudyConfig) -> Iterator[Trials]:
    with Repository.open(study.storage) as repository:
        trials = Trials(study, plans=make_plans(study), repository=repository, ledger=Ledger(n_slots=2))
        repository.register(study_records(study, trials.n_trials))
        trials.read_stored()
        yield trials


def tell(trials: Trials, trial: OpenTrial, loss: float) -> None:
    trial.results[0] = result(9.0, loss)
    trials.tell(trial)


def test_a_grid_grows_with_the_last_of_several_trials_that_run_at_once(tmp_path: Path) -> None:
    """Its edge turns out to be the best when another worker has asked in vain already."""
    study = config(tmp_path, optimizers=[GRID], sampler="grid", trials=50, repeats=1)
    with trials_of(study) as trials:
        running = {}
        while (trial := trials.next_in_turn()) is not None:
            running[trial.params["lr"]] = trial
        assert sorted(running) == [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
        for lr in (1e-2, 1e-3, 3e-3, 3e-2):
            tell(trials, running[lr], 1.0 + abs(lr - 1e-2))
            assert trials.next_in_turn() is None
        assert trials.n_expected("runner/digits_mlp/sgd") == 5
        tell(trials, running[1e-1], 0.5)
        assert not trials.finished()
        assert trials.n_expected("runner/digits_mlp/sgd") == 6
        further = trials.next_in_turn()
        assert further is not None
        assert further.params["lr"] == 0.3
        tell(trials, further, 0.6)  # inside again
        assert trials.next_in_turn() is None
        assert trials.finished()


def test_studies_take_turns_whatever_is_finished(tmp_path: Path) -> None:
    def order(trials: Trials) -> list[tuple[str, int]]:
        found = []
        while (trial := trials.next_in_turn()) is not None:
            found.append((trial.plan.optimizer, trial.number))
        return found

    study = config(tmp_path, sampler="random", repeats=1)
    with trials_of(study) as trials:
        first, second = trials.next_in_turn(), trials.next_in_turn()
        assert first is not None
        assert second is not None
        tell(trials, second, 1.0)
        assert trials.n_begun == 2
    with trials_of(study) as trials:  # as after a stop: sgd's first was begun, adamw's is finished
        assert trials.n_begun == 1
        assert order(trials) == [("sgd", 0), ("sgd", 1), ("adamw", 1), ("sgd", 2), ("adamw", 2)]
        assert trials.n_begun == 6
