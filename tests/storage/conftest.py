import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kftune.storage.repository import Repository
from tests.storage.builders import study_record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database with one study, closed."""
    path = tmp_path_factory.mktemp("made") / "results.db"
    with Repository.open(f"sqlite:///{path}") as repository:
        repository.register([study_record()])
    return path


@pytest.fixture
def repository(made: Path, path: Path, url: str) -> Iterator[Repository]:
    """A copy of :func:`made`, open."""
    shutil.copy(made, path)
    with Repository.open(url) as repository:
        yield repository
