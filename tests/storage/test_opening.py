import ctypes
import os
import sqlite3
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest

from kftune.errors import NewerDatabaseError, StorageError
from kftune.storage import _migrating
from kftune.storage.repository import Repository
from tests.processes.database import connected
from tests.storage.builders import run_record, session_record, study_record


def refused(url: str, **options: bool) -> str:
    """The one line with which opening is refused."""
    with pytest.raises(StorageError) as raised:
        Repository.open(url, **options).close()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def everything_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def filled(path: Path, url: str) -> Path:
    """A database with a study and a run, closed."""
    with Repository.open(url) as repository:
        repository.register([study_record()])
        repository.add_run(run_record(repository.begin_session(session_record())), session_ledger={})
    return path


@pytest.mark.parametrize("options", [{"create": False}, {"read_only": True}])
def test_a_missing_database_is_named_and_not_made(url: str, path: Path, options: dict[str, bool]) -> None:
    assert str(path) in refused(url, **options)
    assert not path.exists()


def test_a_new_database_is_whole_and_alone(url: str, path: Path) -> None:
    Repository.open(url).close()
    assert list(everything_in(path.parent)) == ["results.db"]
    with connected(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    with Repository.open(url, create=False) as repository:
        assert repository.studies() == []


def test_odd_file_names_are_names(tmp_path: Path) -> None:
    directory = tmp_path / "100% {good} #1 ü?"
    directory.mkdir()
    url = f"sqlite:///{quote(str(directory))}/a{{b}}%2520.db"  # in a URL, %25 is a percent sign
    with Repository.open(url) as repository:
        repository.register([study_record()])
    assert list(everything_in(directory)) == ["a{b}%20.db"]
    with Repository.open(url, read_only=True) as repository:
        assert repository.studies() == [study_record()]


def test_a_relative_path_is_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Repository.open("sqlite:///here.db") as repository:
        monkeypatch.chdir("/")
        repository.register([study_record()])
    assert [entry.name for entry in tmp_path.iterdir()] == ["here.db"]


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("results.db", "not a database URL such as sqlite:///results.db"),
        ("nosuch://host/name", "not a database URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////tmp/x.db?mode=ro", "options after '?'"),
        ("sqlite+aiosqlite:////tmp/x.db", "not through aiosqlite"),
        ("", "not a database URL"),
    ],
)
def test_a_bad_url_is_refused(url: str, part: str) -> None:
    assert part in refused(url)


def test_a_server_that_is_not_there_does_not_show_the_password() -> None:
    message = refused("postgresql://user:secret@localhost:1/name")
    assert "postgresql://user:***@localhost:1/name" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("missing/results.db", "missing is not a directory"),
        ("file/results.db", "is not a directory"),
        (".", "is a directory"),
    ],
)
def test_an_impossible_place_is_refused(tmp_path: Path, place: str, part: str) -> None:
    (tmp_path / "file").write_text("")
    assert part in refused(f"sqlite:///{tmp_path / place}")
    assert list(everything_in(tmp_path)) == ["file"]


def test_a_file_that_is_no_database_is_left_alone(path: Path, url: str) -> None:
    path.write_text("name: quickstart\nproblems: [digits_autoencoder]\n" * 100)
    before = everything_in(path.parent)
    for options in ({}, {"create": False}, {"read_only": True}):
        assert refused(url, **options) == f"{path}: is not a SQLite database"
    assert everything_in(path.parent) == before


def test_a_damaged_database_is_refused(filled: Path, url: str) -> None:
    content = bytearray(filled.read_bytes())
    content[2000:] = bytes(len(content) - 2000)
    filled.write_bytes(content)
    assert str(filled) in refused(url)


def test_another_programs_database_is_left_alone(path: Path, url: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    assert "another program (it has a table 'bookmarks')" in refused(url)
    assert "no kftune studies" in refused(url, read_only=True)
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]
    connection.close()


def test_studies_can_be_added_to_an_optuna_database(path: Path, url: str) -> None:
    optuna.create_study(study_name="theirs", storage=url).ask()
    assert "no kftune studies" in refused(url, create=False)
    assert "no kftune studies" in refused(url, read_only=True)
    with Repository.open(url) as repository:
        repository.register([study_record()])
        assert sorted(optuna.get_all_study_names(url)) == [study_record().study, "theirs"]
        assert repository.file_names() == ["demo"]


def test_an_empty_file_becomes_a_database(path: Path, url: str) -> None:
    path.touch()
    assert "no kftune studies" in refused(url, read_only=True)
    with Repository.open(url) as repository:
        repository.register([study_record()])


def set_version(path: Path, table: str, version: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE {table} SET version_num = ?", (version,))
    connection.commit()
    connection.close()


@pytest.mark.parametrize("options", [{}, {"create": False}, {"read_only": True}])
def test_a_newer_database_is_refused_unchanged(filled: Path, url: str, options: dict[str, bool]) -> None:
    set_version(filled, "kftune_alembic_version", "0999")
    before = filled.read_bytes()
    with pytest.raises(NewerDatabaseError, match=r"written by a later kftune \(schema 0999"):
        Repository.open(url, **options)
    assert filled.read_bytes() == before


@pytest.mark.parametrize("options", [{}, {"create": False}, {"read_only": True}])
def test_a_newer_optuna_schema_is_refused(filled: Path, url: str, options: dict[str, bool]) -> None:
    set_version(filled, "alembic_version", "v99.0.0.a")
    assert "updating optuna" in refused(url, **options)


def test_reading_does_not_bring_an_older_schema_up_to_date(
    filled: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_migrating, "head_revision", lambda: "0999")
    assert "`kftune resume` brings it up to date" in refused(url, read_only=True)


def test_reading_changes_nothing(filled: Path, url: str) -> None:
    before = everything_in(filled.parent)
    with Repository.open(url, read_only=True) as repository:
        assert len(repository.runs()) == 1
        assert repository.trials(study_record().study) == []
        for write in (
            lambda: repository.register([study_record(optimizer="sgd")]),
            lambda: repository.begin_session(session_record()),
            lambda: repository.add_run(run_record(1, 1), session_ledger={}),
            lambda: repository.save_session(1, ledger={}),
        ):
            with pytest.raises(StorageError, match="open for reading only"):
                write()
    assert everything_in(filled.parent) == before


def test_optuna_cannot_write_through_a_read_only_repository(filled: Path, url: str) -> None:
    before = filled.read_bytes()
    with Repository.open(url, read_only=True) as repository:
        study = optuna.load_study(study_name=study_record().study, storage=repository.optuna_storage)
        with pytest.raises(optuna.exceptions.StorageInternalError):
            study.ask()
    assert filled.read_bytes() == before


def respect_permissions() -> None:
    """Give up root's right to ignore files' modes (capabilities(7): CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice for 64 bits
    assert libc.capget(header, sets) == 0
    for i in range(3):
        sets[i] &= ~(1 << 1 | 1 << 2)
    assert libc.capset(header, sets) == 0


def as_ordinary_user(action: Callable[[], None]) -> str:
    """What ``action`` raises ("" for nothing), done without root's right to write everywhere."""
    if os.geteuid() != 0:
        return _message(action)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens, the child must not go on as a second pytest.
        try:
            respect_permissions()
            os.write(writing, _message(action).encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - not even SystemExit may pass
            os.write(writing, traceback.format_exc().encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        message = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, message
    return message


def _message(action: Callable[[], None]) -> str:
    try:
        action()
    except StorageError as error:
        return str(error)
    return ""


@pytest.fixture
def protected(filled: Path) -> Iterator[Callable[[int, int], None]]:
    """Sets the modes of the database and of its directory."""
    directory = filled.parent
    opened = [parent for parent in directory.parents if parent.stat().st_mode & 0o005 != 0o005]
    modes = {parent: parent.stat().st_mode for parent in (*opened, directory)}
    for parent in opened:
        parent.chmod(0o755)

    def protect(file_mode: int, directory_mode: int) -> None:
        filled.chmod(file_mode)
        directory.chmod(directory_mode)

    yield protect
    for parent, mode in modes.items():
        parent.chmod(mode)


def open_and_read(url: str, **options: bool) -> Callable[[], None]:
    def action() -> None:
        with Repository.open(url, **options) as repository:
            assert len(repository.runs()) == 1

    return action


def test_a_directory_that_is_not_writable_is_named(
    protected: Callable[[int, int], None], filled: Path, url: str
) -> None:
    protected(0o444, 0o555)
    other = f"sqlite:///{filled.with_name('other.db')}"
    assert as_ordinary_user(open_and_read(other)) == (
        f"cannot create {filled.with_name('other.db')}: the directory {filled.parent} is not writable"
    )
    assert as_ordinary_user(open_and_read(url)) == f"{filled} is not writable"
    protected(0o666, 0o555)
    assert "needs to write in its directory" in as_ordinary_user(open_and_read(url))
    protected(0o000, 0o555)
    assert as_ordinary_user(open_and_read(url, read_only=True)) == f"{filled} is not readable"


@pytest.mark.parametrize("modes", [(0o444, 0o555), (0o444, 0o777), (0o666, 0o555), (0o666, 0o777)])
def test_what_cannot_be_written_can_be_read(
    protected: Callable[[int, int], None], url: str, modes: tuple[int, int]
) -> None:
    protected(*modes)
    assert as_ordinary_user(open_and_read(url, read_only=True)) == ""


def test_reading_and_drawing_need_no_torch() -> None:
    code = "import sys, kftune.storage.repository; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"
