"""Databases whose bytes have changed since: every command answers, with results or with one line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kftune.cli import main
from tests.cli.stored import make

COMMANDS = (["status"], ["best"], ["compare"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "made.db"
    make(path)
    return path.read_bytes()


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        code = main([*command, "--storage", str(path)])
        err = capsys.readouterr().err
        assert code in (0, 2)
        assert err.count("\n") == (code == 2)
        assert err.startswith("error: ") == (code == 2)


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bits(whole: bytes, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(seed)
    data = bytearray(whole)
    for _ in range(rng.choice([1, 3, 30, 300])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path = tmp_path / "flipped.db"
    path.write_bytes(data)
    check(path, capsys)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (b"completed", b"conpleted"),  # an outcome
        (b'"objective"', b'"objective\xff'),  # JSON that ends nowhere, and is no UTF-8
        (b"2026-", b"20x6-"),  # a time
        (b"CREATE TABLE", b"CREATE \xf4ABLE"),
        (b"COMPLETE", b"COMPLATE"),  # of Optuna's tables
        (b"kftune_alembic_version", b"kftune_alembic_versiom"),
    ],
)
def test_what_is_read_into_records(
    whole: bytes, tmp_path: Path, text: bytes, other: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(text) == len(other)
    assert text in whole
    path = tmp_path / "changed.db"
    path.write_bytes(whole.replace(text, other))
    check(path, capsys)
