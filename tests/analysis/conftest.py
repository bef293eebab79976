import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kftune.results import Outcome
from kftune.storage.repository import Repository
from tests.analysis.builders import UNTRAINED, add_trial, failed, result
from tests.storage.builders import session_record, study_record

KFAC, SGD = "demo/digits/kfac", "demo/digits/sgd"
CONFIG = {"name": "demo", "repeats": 2, "startup_trials": 2, "objective": "test_loss"}
SPACE = {"dimensions": {}, "fixed": {"fisher": "mc"}}


def make_studies(repository: Repository) -> None:
    """Two studies of two runs a trial, one session."""
    for optimizer in ("kfac", "sgd"):
        repository.register([study_record(optimizer=optimizer, n_trials=8, config=CONFIG, space=SPACE)])
    repository.begin_session(session_record())


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """See :func:`make_studies`; no trial yet."""
    with Repository.open(f"sqlite:///{tmp_path / 'results.db'}") as repository:
        make_studies(repository)
        yield repository


@pytest.fixture(scope="session")
def filled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """K-FAC with trials of all kinds, SGD with one."""
    path = tmp_path_factory.mktemp("filled") / "results.db"
    with Repository.open(f"sqlite:///{path}") as repository:
        make_studies(repository)
        add_trial(repository, KFAC, 0, [result(0.5), result(0.7)], value=0.6)
        add_trial(repository, KFAC, 1, [result(0.2), result(0.2)], value=0.2, lr=0.3)
        add_trial(repository, KFAC, 2, [result(0.1), failed(Outcome.DIVERGED, 1e9)], value=(0.1 + UNTRAINED) / 2)
        add_trial(repository, KFAC, 3, [failed(Outcome.OUT_OF_MEMORY)] * 2, value=UNTRAINED)
        add_trial(repository, KFAC, 4, [result(0.01), failed(Outcome.CRASHED)], value=None)
        add_trial(repository, KFAC, 5, [result(0.6), result(0.6)], value=0.6)
        add_trial(repository, SGD, 0, [result(0.8), result(0.9)], value=0.85)
    return path


@pytest.fixture
def filled(filled_file: Path, tmp_path: Path) -> Iterator[Repository]:
    """A copy of :func:`filled_file`, open for writing."""
    with Repository.open(f"sqlite:///{shutil.copy(filled_file, tmp_path / 'filled.db')}") as repository:
        yield repository
