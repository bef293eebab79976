import subprocess
import sys
from itertools import pairwise

import optuna
import pytest

from kftune.analysis.results import FileResults, load_results
from kftune.errors import UnknownNameError
from kftune.storage.repository import Repository
from kftune.training.results import Outcome
from tests.analysis.builders import UNTRAINED, add_trial, failed, result
from tests.analysis.conftest import CONFIG, KFAC
from tests.storage.builders import session_record, study_record


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
        "import sys, kftune.analysis.best, kftune.analysis.frames, kftune.analysis.status, kftune.dashboard.page; "
        "print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"
