"""Problems by their targets: what is loaded, when, and from where."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kftune.errors import UsageError
from kftune.problems import (
    PROBLEMS,
    Problem,
    ProblemEntry,
    Split,
    data_read_from,
    default_data_dir,
    problem_loader,
)


class Module(types.ModuleType):
    """With a problem as a function and as an entry; remembers the directories that it was loaded from."""

    nothing = 3

    def __init__(self) -> None:
        super().__init__("my_problems")
        self.loaded: list[Path] = []
        self.entry = ProblemEntry(name="own", load=self.load, summary="", source="", n_train=5, n_test=5)

    def load(self, *, device: torch.device, dtype: torch.dtype, data_dir: Path) -> Problem:
        self.loaded.append(data_dir)
        x = torch.zeros(int(data_dir.name), 1, device=device, dtype=dtype)
        return Problem(
            name="own",
            likelihood="gaussian",
            make_model=lambda: nn.Linear(1, 1),
            loss=nn.functional.mse_loss,
            train=Split(x, x),
            test=Split(x, x),
        )


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    found = Module()
    monkeypatch.setitem(sys.modules, "my_problems", found)
    return found


def load(loader: Any, data_dir: Path) -> Problem:
    problem: Problem = loader(device=torch.device("cpu"), dtype=torch.float64, data_dir=data_dir)
    return problem


def test_a_function_is_asked_once_for_each_data_directory(module: Module) -> None:
    for name, n in (("3", 3), ("4", 4), ("3", 3)):
        with data_read_from(Path(name)):
            assert PROBLEMS.get("my_problems:load").n_train == n
    assert module.loaded == [Path("3"), Path("4")]


def test_its_loader_alone_loads_nothing(module: Module) -> None:
    loaders = [problem_loader("my_problems:load"), problem_loader("my_problems:entry")]
    assert not module.loaded
    assert [len(load(loader, Path("6")).train) for loader in loaders] == [6, 6]
    assert problem_loader("digits_mlp") is PROBLEMS.get("digits_mlp").load
    with pytest.raises(UsageError, match="'my_problems:nothing' is no problem; it must be"):
        problem_loader("my_problems:nothing")


def test_the_innermost_directory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFTUNE_DATA", "/outside")
    with data_read_from(Path("/a")):
        with data_read_from(None), data_read_from(Path("/b")):
            assert default_data_dir() == Path("/b")
        with pytest.raises(ZeroDivisionError), data_read_from(Path("/c")):
            raise ZeroDivisionError
        assert default_data_dir() == Path("/a")
    assert default_data_dir() == Path("/outside")
