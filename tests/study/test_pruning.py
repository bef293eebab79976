"""Which points of a run are judged, from when on, and by whose reports: on real databases and real workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kftune.results import CurvePoint, Outcome
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, config_from_dict
from kftune.study.executors import Asked, Finished, LocalExecutor, Lost, RunEvent
from kftune.study.executors.ledger import Ledger
from kftune.study.sessions.pruning import Judge
from kftune.study.sessions.trials import OpenTrial, Trials
from tests.analysis.builders import result
from tests.study.test_executor import spec
from tests.study.test_runner import Recorder, config, run, runs_of
from tests.study.test_trials import trials_of

STUDY = "runner/digits_mlp/sgd"
SLOW = '''
"""Digits; a step takes 0.1 s."""
import time
from dataclasses import replace
import torch
from kftune.problems import PROBLEMS

class Slow(torch.nn.Linear):
    def forward(self, inputs):
        if self.training:
            time.sleep(0.1)
        return super().forward(inputs)

def load(*, device, dtype, data_dir):
    """Digits."""
    digits = PROBLEMS.get("digits_mlp").load(device=device, dtype=dtype, data_dir=data_dir)
    return replace(digits, make_model=lambda: Slow(64, 10))
'''


def test_a_run_asks_after_every_point_but_the_first_and_the_last() -> None:
    with LocalExecutor(["cpu"], threads=1, ledger=Ledger(n_slots=1)) as executor:
        executor.submit(0, spec("digits_mlp", is_judged=True), limit_seconds=None)
        events: list[RunEvent] = []
        while not any(isinstance(event, Finished) for event in events):
            for event in executor.poll(0.1):
                events.append(event)
                if isinstance(event, Asked):
                    executor.judge(0, goes_on=True)
    assert [type(event).__name__ for event in events] == [
        "Started",
        "Progressed",
        *("Progressed", "Asked") * 3,
        "Progressed",
        "Finished",
    ]


def test_a_run_that_has_used_its_budget_is_complete(tmp_path: Path) -> None:
    """Its last evaluation is at 0.8 of the budget or later, where no other step fits in."""
    (tmp_path / "slow.py").write_text(SLOW)
    plain = config(tmp_path).to_dict() | {
        "problems": [{"target": "slow:load", "name": "slow"}],
        "optimizers": [{"name": "sgd", "fixed": {"momentum": 0.0, "batch_size": 64}}],
        "budget": {"seconds": 0.45},
        "trials": 5,
        "repeats": 1,
        "startup_trials": 1,
        "sampler": "random",
        "evaluation": {"points": 20, "train_examples": 100},
        "pruner": {"name": "median", "after": 0.8},
    }
    study = config_from_dict(plain, "test", directory=tmp_path)
    assert run(study).outcome == "complete"
    runs = runs_of(study)
    assert [run.result.outcome for run in runs] == [Outcome.COMPLETED] * 5
    losses = [run.result.curve[-1].test_loss for run in runs]
    assert any(later > max(losses[:1]) for later in losses[1:])  # which the median pruner would have stopped


@pytest.mark.parametrize("pruner", ["median", "successive_halving", "hyperband"])
def test_no_run_is_stopped_before_its_time(tmp_path: Path, pruner: str) -> None:
    study = config(
        tmp_path,
        optimizers=["sgd"],
        trials=8,
        repeats=1,
        pruner={"name": pruner, "after": 0.5},
        sampler="random",
        evaluation={"points": 10},
    )
    run(study)
    stopped = [run.result.updates for run in runs_of(study) if run.result.outcome is Outcome.PRUNED]
    assert min(stopped) == 10  # of 20


def test_shares_that_are_not_whole_steps_are_rounded_down(tmp_path: Path) -> None:
    study = judged(tmp_path, "median", budget={"seconds": 1.0})
    with trials_of(study) as trials, Repository.open(study.storage) as repository:
        judge = Judge(study, repository=repository)
        trial = begun(trials)
        for seconds in (0.1, 0.299, 0.3, 0.49, 0.999):
            judge.goes_on(trial.plan, trial.number, point(seconds, 1.0), untrained=point(0.0, 2.0))
        assert list(reports(repository, trial)) == [1, 2, 3, 4, 9]


def judged(directory: Path, pruner: str, **changes: object) -> StudyConfig:
    keys: dict[str, object] = {
        "optimizers": ["sgd"],
        "trials": 9,
        "repeats": 1,
        "pruner": {"name": pruner, "after": 0.1},
        "sampler": "random",
        "evaluation": {"points": 10},
        "budget": {"updates": 10},
    }
    return config(directory, **(keys | changes))


def point(seconds: float, loss: float, *, update: int = 0) -> CurvePoint:
    return CurvePoint(train_seconds=seconds, update=update, train_loss=loss, test_loss=loss)


def begun(trials: Trials) -> OpenTrial:
    trial = trials.next_in_turn()
    assert trial is not None
    return trial


def reports(repository: Repository, trial: OpenTrial) -> dict[int, float]:
    storage = repository.optuna_storage
    study_id = storage.get_study_id_from_name(STUDY)
    return dict(storage.get_all_trials(study_id)[trial.number].intermediate_values)


def attempt(judge: Judge, trial: OpenTrial, losses: list[float]) -> int:
    """Number of points after which the run is stopped, or has ended."""
    judge.begin(trial.plan, trial.number)
    untrained = point(0.0, 3.0)
    for update, loss in enumerate(losses, start=1):
        if not judge.goes_on(trial.plan, trial.number, point(0.0, loss, update=update), untrained=untrained):
            return update
    return len(losses)


@pytest.mark.parametrize("pruner", ["median", "successive_halving", "hyperband"])
def test_a_run_that_is_made_again_is_judged_by_its_own_reports(tmp_path: Path, pruner: str) -> None:
    """The first attempt was bad, or good and farther; either way the second one's curve alone decides, and is kept."""
    bad, good, falling = [2.5] * 9, [0.1] * 9, [2.0 - 0.1 * update for update in range(9)]
    ends = {}
    for earlier in ([], bad, good):
        (directory := tmp_path / str(earlier[:1])).mkdir()
        study = judged(directory, pruner)
        with trials_of(study) as trials, Repository.open(study.storage) as repository:
            judge = Judge(study, repository=repository)
            for scale in (1.0, 1.1, 0.9, 0.8):
                trial = begun(trials)
                n_points = attempt(judge, trial, [scale * loss for loss in falling])
                trial.results[0] = result(9.0, scale)
                if n_points < len(falling):
                    trial.results[0] = replace(trial.results[0], outcome=Outcome.PRUNED)
                trials.tell(trial)
            trial = begun(trials)
            if earlier:
                attempt(judge, trial, earlier)
            second = [1.05 * loss for loss in falling]
            n_points = attempt(judge, trial, second)
            assert reports(repository, trial) == dict(enumerate(second[:n_points], start=1))
            trial.results[0] = replace(result(9.0, 1.0), outcome=Outcome.PRUNED)
            trials.tell(trial)
            assert repository.trials(STUDY)[trial.number].value == second[n_points - 1]
            system_attrs = repository.optuna_storage.get_all_trials(
                repository.optuna_storage.get_study_id_from_name(STUDY)
            )[trial.number].system_attrs
            ends[str(earlier[:1])] = (n_points, {k: v for k, v in system_attrs.items() if k.startswith("completed_")})
    assert len({str(end) for end in ends.values()}) == 1


class _LosesTheFirstPruned(LocalExecutor):
    """Says of the first run that is pruned that its worker died; the worker and its runs are real."""

    has_lost = False

    def poll(self, timeout_seconds: float) -> list[RunEvent]:
        events: list[RunEvent] = []
        for event in super().poll(timeout_seconds):
            lost = isinstance(event, Finished) and event.result.outcome is Outcome.PRUNED and not self.has_lost
            if lost:
                type(self).has_lost = True
            events.append(Lost(event.slot, "the worker was ended by SIGKILL", 1.0) if lost else event)
        return events


def test_a_pruned_run_that_is_lost_is_made_and_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = config(tmp_path, optimizers=["sgd"], trials=8, pruner="median", sampler="random", evaluation={"points": 10})
    executor = type("Executor", (_LosesTheFirstPruned,), {})
    monkeypatch.setattr("kftune.study.executors.LocalExecutor", executor)
    recorder = Recorder()
    assert run(study, recorder).outcome == "complete"
    assert len(recorder.messages) == 1
    (again,) = (run for run in runs_of(study) if run.attempt == 2)
    assert again.result.outcome is Outcome.PRUNED
    with Repository.open(study.storage) as repository:
        trial = repository.trials(STUDY)[again.trial]
    assert trial.state == "pruned"
    assert trial.value == pytest.approx(again.result.curve[-1].test_loss)
