"""No room is too large to look around in, and no file too long to read."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_MODULES = 20
MOST_LINES = 400

FILES = sorted(path for package in ("kftune", "tests") for path in (ROOT / package).rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_a_folder_has_few_modules_of_its_own(folder: Path) -> None:
    modules = sorted(path.name for path in folder.glob("*.py"))
    assert len(modules) <= MOST_MODULES, modules


def test_no_file_is_long() -> None:
    long = {named(path): n for path in FILES if (n := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES}
    assert long == {}
