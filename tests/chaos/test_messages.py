"""What a user's code says when it fails, however it says it, ends no runner and fills no database."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from kftune.cli import main
from kftune.results import Outcome
from kftune.wording import cut, plain_text
from tests.chaos.studies import TARGET, is_complete, kftune, runs_of, write_fault, write_study

TEXTS = {
    "lone_surrogate": r'raise ValueError("a file \udcff of another encoding")',
    "both_halves": r'raise ValueError("\udc00\ud800")',
    "nul": r'raise ValueError("a NUL \x00 in it")',
    "as_key": r'raise KeyError("\ud83d")',
    "class_name": r'raise type("Err\ud83dor", (Exception,), {})("odd")',
    "cause": r'raise RuntimeError("over") from ValueError("\udcff")',
    "out_of_memory": r'raise MemoryError("\udcff")',
    "group": r'raise ExceptionGroup("\udcff", [ValueError("\udcfe")])',
    "unprintable": 'raise type("Odd", (RuntimeError,), {"__str__": lambda self: 1 / 0})("odd")',
    "printed": r'os.write(1, b"\xff\xfe\x00\xed\xa0\x80"); os._exit(3)',
}

COUNT = f"if turn < {len(TEXTS) - 1}:\n    turns.write_text('.' * (turn + 1))"


def test_any_text_of_an_exception_is_stored_and_printed(tmp_path: Path) -> None:
    """One in each run of a study; that which ends its worker has the last, which is tried three times."""
    write_study(tmp_path, problems=TARGET, trials=len(TEXTS))
    turns = "".join(f"\nif turn == {turn}:\n    {statement}" for turn, statement in enumerate(TEXTS.values()))
    write_fault(
        tmp_path, f"turns = HERE / 'turns'\nturn = len(turns.read_text()) if turns.exists() else 0\n{COUNT}{turns}"
    )
    code, out, err = kftune(tmp_path, "run", "study.yaml")
    assert (code, err) == (0, ""), out + err
    assert "Traceback" not in out
    assert is_complete(tmp_path, trials=len(TEXTS))
    runs = runs_of(tmp_path)
    for text, run in zip(TEXTS, runs, strict=True):
        assert run.result.outcome is (Outcome.OUT_OF_MEMORY if text == "out_of_memory" else Outcome.CRASHED), text
        run.result.message.encode()  # it is text
    assert "a file \\udcff of another encoding" in runs[0].result.message
    for command in (("status",), ("best",), ("dashboard", "--out", "page.html")):
        assert kftune(tmp_path, *command)[::2] == (0, "")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", ""),
        ("ReLU → Grüße 🙂", "ReLU → Grüße 🙂"),
        ("\x00", "\\x00"),
        ("\udcff", "\\udcff"),
        ("\ud83d\ude42", "\\ud83d\\ude42"),  # two halves that nobody put together
    ],
)
def test_plain_text(text: str, plain: str) -> None:
    assert plain_text(text) == plain
    assert plain_text(plain) == plain


def test_a_terminal_that_lacks_a_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["describe", "kfac"]) == 0
    out.flush()
    assert b"\\u" in out.buffer.getvalue()  # type: ignore[attr-defined]  # the BytesIO


def test_a_long_message_is_cut_before_it_is_stored(tmp_path: Path) -> None:
    write_study(tmp_path, problems=TARGET, repeats=2)
    write_fault(tmp_path, 'raise ValueError("begins" + "é" * 20_000_000 + "ends")')
    code, out, err = kftune(tmp_path, "run", "study.yaml")
    assert code == 1  # three runs of four crashed in the same way
    assert len(out) + len(err) < 50_000
    assert (tmp_path / "chaos.db").stat().st_size < 1_000_000
    messages = [run.result.message for run in runs_of(tmp_path)]
    assert len(messages) == 3
    for message in messages:
        assert message.startswith("Traceback (most recent call last)")
        assert "ValueError: beginsé" in message
        assert message.rstrip().endswith("ends")
        assert re.search(r"é \[…199\d{5} characters left out…\] é", message)
        assert len(message) <= 20_000


@pytest.mark.parametrize("length", [0, 99, 100, 101, 160, 1000, 10**6])
def test_cutting(length: int) -> None:
    text = "".join(chr(33 + i % 90) for i in range(length))
    shorter = cut(text, 100)
    assert len(shorter) <= 100
    assert cut(shorter, 100) == shorter
    if length <= 100:
        assert shorter == text
        return
    head, _, rest = shorter.partition(" […")
    number, _, tail = rest.partition(" characters left out…] ")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + int(number) + len(tail) == length
