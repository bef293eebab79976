"""No password is printed, and nothing is left behind, wherever a database's URL is refused."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from kftune.cli import main
from kftune.errors import StorageError
from kftune.storage.repository import Repository
from kftune.wording import without_password, without_passwords
from tests.cli.conftest import STUDY, Command

SECRET = "s3cret"
URLS = [
    f"mysql://me:{SECRET}@host/db",  # unsupported
    f"mysql+{SECRET}://me:{SECRET}@host/db",
    f"postgresql:me:{SECRET}@host/db",
    f"postgresql:/me:{SECRET}@host/db",
    f"postgresql//me:{SECRET}@host/db",
    f"postgresql://me:a@{SECRET}@host/db",  # mis-escaped
    f"postgresql://me:a/{SECRET}@host:port/db",
    f"postgresql://me:a:{SECRET}@host:99999x/db",
    f"postgresql://me:a#{SECRET}?@host:port",
    f"postgresql://:{SECRET}@host:port/db",
    f"postgresql+nodriver://me:{SECRET}@host/db",
    f"sqlite+nodriver://me:{SECRET}@host/db",
    f"sqlite://me:{SECRET}@/file.db?password={SECRET}",
    f"mongodb://host/db?user=me&password={SECRET}&ssl=1",
]
# The second holds the secret in its scheme, too, which is no password.
HIDDEN = [url for url in URLS if "mysql+" not in url]

COMMANDS = [
    ["run", "study.yaml", "--storage", "URL"],
    ["run", "study.yaml", "--set", "storage=URL"],
    ["run", "study.yaml", "--dry-run", "--set", "warm_start=['URL#x']"],
    ["run", "study.yaml", "--set", "warm_start=[{from: 'URL#x'}]"],
    ["validate", "study.yaml", "--set", "storage=URL"],
    ["resume", "small", "--storage", "URL"],
    ["confirm", "small", "--storage", "URL"],
    ["status", "URL"],
    ["status", "--storage", "URL"],
    ["best", "--storage", "URL"],
    ["compare", "--storage", "URL"],
    ["transfer", "--storage", "URL"],
    ["export", "--storage", "URL"],
    ["dashboard", "--storage", "URL"],
    ["dashboard", "URL"],
    ["serve", "--storage", "URL"],
    ["figure", "verdict", "--storage", "URL"],
    ["import", "URL", "--storage", "new.db"],
    ["import", "sweep.csv", "--storage", "URL"],
]


@pytest.mark.product
@pytest.mark.parametrize("url", HIDDEN)
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_password_is_printed_nowhere(kftune: Command, study_file: Path, command: list[str], url: str) -> None:
    Path("sweep.csv").write_text("lr,loss\n0.1,1\n0.2,2\n")
    before = sorted(Path().iterdir())
    result = kftune(*(part.replace("URL", url) for part in command))
    assert result.code in ((0, 2) if command[0] == "validate" else (1, 2))  # whether it can be opened is not tried
    assert SECRET not in result.out + result.err
    assert "Traceback" not in result.err
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("url", HIDDEN)
@pytest.mark.parametrize("key", ["storage: {}", "warm_start: '{}#x'", "warm_start: {{from: '{}#x'}}", "name: '{}'"])
def test_nor_where_the_study_file_has_it(kftune: Command, study_file: Path, key: str, url: str) -> None:
    lines = [line for line in STUDY.splitlines() if not (key.startswith("name") and line.startswith("name:"))]
    study_file.write_text("\n".join([*lines, key.format(url), ""]))
    result = kftune("run", "study.yaml")
    assert result.code == 2
    assert SECRET not in result.out + result.err
    assert not list(Path().glob("*.db"))


@pytest.mark.parametrize("url", HIDDEN)
def test_nor_from_python(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        Repository.open(url)
    assert SECRET not in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__


def test_what_is_hidden_and_what_is_not() -> None:
    assert without_password("postgresql://me:pw@host:5432/db") == "postgresql://me:***@host:5432/db"
    assert without_password(f"postgresql://me:{quote('a@/:#')}@host/db") == "postgresql://me:***@host/db"
    for plain in (
        "sqlite:///study.db",
        "sqlite:////abs/a:b@c.db",
        "postgresql://me@host:5432/db",
        "study.db",
        "x.db#y",
    ):
        assert without_password(plain) == plain
        assert without_passwords(f"error: {plain}: is not there") == f"error: {plain}: is not there"
    said = "storage 'postgresql://a:b@c/d' and postgresql://e:f@g, see http://x.org: no"
    assert without_passwords(said) == "storage 'postgresql://a:***@c/d' and postgresql://e:***@g, see http://x.org: no"


@pytest.mark.parametrize("source", ["nobody", "there.db#nobody", "missing.db#small"])
@pytest.mark.parametrize("command", ["run", "python"])
def test_a_source_that_is_not_there_leaves_no_database(
    kftune: Command, study_file: Path, source: str, command: str
) -> None:
    with Repository.open("sqlite:///there.db"):
        pass
    if command == "run":
        result = kftune("run", "study.yaml", "--set", f"warm_start={source}")
        assert result.code == 2
        assert "error: " in result.err
    else:
        from kftune.api import run_study
        from kftune.errors import UsageError

        with pytest.raises(UsageError):
            run_study(study_file, overrides=[f"warm_start={source}"], progress=False)
    assert sorted(path.name for path in Path().glob("*.db*")) == ["there.db"]


def test_nothing_to_confirm_leaves_no_database(study_file: Path) -> None:
    from kftune.api import Study

    with pytest.raises(StorageError, match=r"there is no database small\.db"):
        Study(study_file).confirm(progress=False)
    assert not Path("small.db").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "study.yaml", "--set", "threads=100000"], "--set: threads: must be at most 1024, got 100000"),
        (["validate", "study.yaml", "--set", "threads=1025"], "--set: threads: must be at most 1024, got 1025"),
        (["run", "study.yaml", "--workers", "100000"], "--workers"),
        (["profile", "digits_mlp", "--threads", "100000"], "--threads"),
    ],
)
def test_more_threads_than_any_machine_has_use_for(
    study_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not list(Path().glob("*.db"))
