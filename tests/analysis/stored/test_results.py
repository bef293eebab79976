import subprocess
import sys
from itertools import pairwise

import optuna
import pytest

from kftune.analysis.stored.results import FileResults, load_results
from kftune.errors import UnknownNameError
from kftune.results import Outcome
from kftune.storage.repository import Repository
from tests.analysis.builders import UNTRAINED, add_confirmation, add_trial, failed, result
from tests.analysis.conftest import CONFIG, KFAC
from tests.storage.builders import run_record, session_record, study_record


def only(repository: Repository) -> FileResults:
    (file,) = load_results(repository)
    return file


def test_runs_stand_with_their_trials(filled: Repository) -> None:
    kfac, sgd = only(filled).studies
    assert [len(trial.runs) for trial in kfac.trials] == [2] * 6
    assert [trial.is_startup for trial in kfac.trials] == [True, True, False, False, False, False]
    assert [trial.trial.value for trial in sgd.trials] == [0.85]


def test_failed_runs_count_as_the_untrained_model(filled: Repository) -> None:
    kfac = only(filled).studies[0]
    assert [trial.run_values for trial in kfac.trials] == [
        (0.5, 0.7),
        (0.2, 0.2),
        (0.1, UNTRAINED),
        (UNTRAINED, UNTRAINED),  # it ran out of memory before its first evaluation: known from the other runs
        (0.01, None),
        (0.6, 0.6),
    ]
    assert only(filled).untrained == {("digits", 0): UNTRAINED, ("digits", 1): UNTRAINED}


def test_the_runs_agree_with_what_the_sampler_was_told(filled: Repository) -> None:
    for study in only(filled).studies:
        for trial in study.trials:
            known = [value for value in trial.run_values if value is not None]
            if trial.trial.value is not None:
                assert trial.trial.value == pytest.approx(sum(known) / len(trial.runs))


def test_a_trial_is_marked_by_its_gravest_failure(repository: Repository) -> None:
    grave = [Outcome.DIVERGED, Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY, Outcome.CRASHED]
    for number, (less, more) in enumerate(pairwise(grave)):
        add_trial(repository, KFAC, number, [failed(less), failed(more)], value=None)
    add_trial(repository, KFAC, 3, [result(0.1), failed(Outcome.DIVERGED)], value=1.0)
    add_trial(repository, KFAC, 4, [result(0.1), result(0.1)], value=0.1)
    failures = [trial.failure for trial in only(repository).studies[0].trials]
    assert failures == [*grave[1:], Outcome.DIVERGED, None]


def test_the_best_comes_first_and_failures_not_at_all(filled: Repository) -> None:
    kfac = only(filled).studies[0]
    # 0 and 5 are equal, so the earlier is first; in 3 and 4 no run ended well or a run has no value.
    assert [trial.trial.number for trial in kfac.ranked()] == [1, 0, 5, 2]


def test_a_pruned_trial_is_finished_but_never_the_best(repository: Repository) -> None:
    add_trial(repository, KFAC, 0, [result(0.1, outcome=Outcome.PRUNED)], value=0.1, is_pruned=True)
    add_trial(repository, KFAC, 1, [result(0.5), result(0.5)], value=0.5)
    add_trial(repository, KFAC, 2, [failed(Outcome.DIVERGED)], value=UNTRAINED, is_pruned=True)
    study = only(repository).studies[0]
    assert [trial.is_finished for trial in study.trials] == [True] * 3
    assert [trial.failure for trial in study.trials] == [Outcome.PRUNED, None, Outcome.DIVERGED]
    assert (study.trials[0].trial.value, study.trials[0].run_values) == (0.1, (0.1,))
    assert [trial.trial.number for trial in study.ranked()] == [1]


def test_a_trial_whose_first_run_was_hopeless_has_one(repository: Repository) -> None:
    add_trial(repository, KFAC, 0, [result(0.9)], value=0.9)
    add_trial(repository, KFAC, 1, [result(0.5), result(0.5)], value=0.5)
    raced, whole = only(repository).studies[0].trials
    assert (raced.is_raced, whole.is_raced) == (True, False)
    assert raced.run_values == (0.9,)


def test_confirming_and_superseded_runs_stand_apart(filled: Repository) -> None:
    before = only(filled)
    add_confirmation(filled, KFAC, 1, [result(0.3), failed(Outcome.DIVERGED)])
    add_confirmation(filled, KFAC, 1, [result(0.25)], budget_factor=3.0)
    filled.add_run(run_record(1, 6, 0, superseded=True, result=result(0.001)), session_ledger={})
    disturbed = run_record(1, 1, 2, superseded=True, purpose="confirm", result=result(0.002))
    filled.add_run(disturbed, session_ledger={})
    after = only(filled)
    confirmed = [(run.trial, run.repeat, run.budget_factor) for run in after.confirmations]
    assert confirmed == [(1, 0, 1), (1, 1, 1), (1, 0, 3)]
    assert [run.purpose for run in after.superseded] == ["search", "confirm"]
    assert after.studies[0].confirmations == after.confirmations
    assert after.studies[1].confirmations == after.studies[1].superseded == ()
    assert after.studies[0].trials == before.studies[0].trials
    assert after.untrained == before.untrained
    assert after.studies[0].untrained_confirming == {0: UNTRAINED}


def test_enqueued_trials_are_neither_random_nor_begun_before_their_turn(repository: Repository) -> None:
    study = optuna.load_study(study_name=KFAC, storage=repository.optuna_storage)
    study.enqueue_trial({"lr": 0.5})
    assert only(repository).studies[0].trials == ()
    for _ in range(2):
        study.ask({"lr": optuna.distributions.FloatDistribution(1e-4, 10.0, log=True)})
    given, drawn = only(repository).studies[0].trials
    assert (given.trial.is_enqueued, given.is_startup) == (True, False)
    assert (drawn.trial.is_enqueued, drawn.is_startup) == (False, True)


def test_a_running_trial_is_not_finished(filled: Repository) -> None:
    optuna.load_study(study_name=KFAC, storage=filled.optuna_storage).ask()
    kfac = only(filled).studies[0]
    assert len(kfac.trials) == 7
    assert len(kfac.finished) == 6
    assert kfac.trials[-1].failure is None


def test_other_objectives_are_taken_from_the_curve(repository: Repository) -> None:
    repository.register([study_record(config=CONFIG | {"objective": "train_loss"})])
    add_trial(repository, KFAC, 0, [result(0.5)], value=0.25)
    assert only(repository).studies[0].trials[0].run_values == (0.25,)


def test_files_are_kept_apart_and_in_order(filled: Repository) -> None:
    filled.register([study_record("zeta"), study_record("alpha")])
    filled.begin_session(session_record("zeta"))
    assert [file.name for file in load_results(filled)] == ["demo", "zeta", "alpha"]
    assert [file.name for file in load_results(filled, ["alpha", "demo"])] == ["alpha", "demo"]
    zeta = load_results(filled, ["zeta"])[0]
    assert (len(zeta.sessions), zeta.problems, zeta.optimizers) == (1, ("digits",), ("kfac",))
    with pytest.raises(UnknownNameError, match="unknown study 'demmo'; did you mean 'demo'"):
        load_results(filled, ["demmo"])


def test_without_curves_trials_keep_their_values(filled: Repository) -> None:
    (file,) = load_results(filled, curves=False)
    kfac = file.studies[0]
    assert [trial.trial.number for trial in kfac.ranked()] == [1, 0, 5, 2]
    assert kfac.trials[0].run_values == (None, None)


def test_analysis_and_dashboard_need_no_torch() -> None:
    code = (
        "import importlib, pkgutil, sys, kftune.analysis, kftune.dashboard.page\n"
        "for module in pkgutil.walk_packages(kftune.analysis.__path__, 'kftune.analysis.'):\n"
        "    importlib.import_module(module.name)\n"
        "print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"


@pytest.mark.parametrize(
    ("sampler", "random"),
    [
        ({"name": "gpyopt"}, [False, True, False, False]),
        ("tpe", [False, True, False, False]),
        ({"target": "mine:Sampler", "args": {}}, [False, True, False, False]),
        ({"name": "random"}, [False, True, True, True]),
        ({"name": "qmc", "sequence": "sobol"}, [False] * 4),
        ({"name": "grid"}, [False] * 4),
    ],
)
def test_which_trials_are_drawn_at_random_is_the_samplers(
    repository: Repository, sampler: object, random: list[bool]
) -> None:
    repository.register([study_record(config=CONFIG | {"sampler": sampler})])  # two start-up trials
    optuna.load_study(study_name=KFAC, storage=repository.optuna_storage).enqueue_trial({"lr": 0.5})
    optuna.load_study(study_name=KFAC, storage=repository.optuna_storage).ask()
    for number in range(1, 4):
        add_trial(repository, KFAC, number, [result(0.5)], value=0.5)
    assert [trial.is_startup for trial in only(repository).studies[0].trials] == random
