"""Study files, databases and CSV files that are wrong, by a generator: each is refused in a line, nothing written."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from kftune.cli import main

SECRET = "hunter2"
STUDY: dict[str, Any] = {
    "name": "small",
    "problems": [{"name": "digits_mlp"}, "digits_autoencoder"],
    "optimizers": [
        {"name": "sgd", "fixed": {"batch_size": 64, "momentum": 0.9}},
        {"name": "kfac", "space": {"damping": {"low": 1e-3, "high": 1.0, "log": True}}},
        {"name": "foof", "space": {"batch_size": {"choices": [32, 64]}}},
    ],
    "budget": {"updates": 5},
    "trials": 2,
    "repeats": 2,
    "startup_trials": 2,
    "sampler": {"name": "tpe"},
    "pruner": {"name": "median"},
    "evaluation": {"points": 2, "train_examples": 100},
    "warm_start": [{"from": f"postgresql://somebody:{SECRET}@nowhere.invalid/studies#earlier", "top": 2}],
    "storage": f"postgresql://somebody:{SECRET}@nowhere.invalid/studies",
    "objective": "test_loss",
    "dtype": "float32",
    "devices": "cpu",
    "threads": 1,
    "seed": 3,
}
WRONG = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            [],
            {},
            "",
            "text",
            "no-such-name",
            -1,
            0,
            10**30,
            1e400,
            -1e400,
            float("nan"),
            "é" * 500,
            "\udcff",
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)
URLS = st.sampled_from(
    [
        f"postgresql://somebody:{SECRET}@host:port/studies",
        f"postgresql://somebody:{SECRET}@[host/studies",
        f"mysql://somebody:{SECRET}@host/studies",
        f"postgres://somebody:{SECRET}@host/studies",
        f"postgresql+nothing://somebody:{SECRET}@host/studies",
        f"postgresql//somebody:{SECRET}@host/studies",
        f"somebody:{SECRET}@host/studies",
        f"postgresql://somebody:a@{SECRET}@host:x/studies",
        f"postgresql://somebody:%zz{SECRET}@ho st:1e3/studies",
        f"sqlite:///file.db?password={SECRET}",
    ]
)
Answer = tuple[int, str, str]


def answer(*arguments: str) -> Answer:
    """The command line's exit code, output and errors, in this process."""
    out, err = io.StringIO(), io.StringIO()
    ours = [handler for handler in logging.getLogger("optuna").handlers if type(handler) is logging.StreamHandler]
    before = [handler.setStream(err) for handler in ours]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(arguments))
    finally:
        for handler, stream in zip(ours, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
    return code, out.getvalue(), err.getvalue()


def faults_of(found: Answer, *, several: bool = False) -> list[str]:
    """What is wrong with the answer to something wrong: it is to be a line (or one for each flaw), without a secret."""
    code, out, err = found
    lines = err.split("\n")[:-1]
    faults = []
    if code != 2 or not lines or not all(line.startswith("error: ") for line in lines):
        faults.append(f"exit code {code}: {err[-300:]!r}")
    if len(lines) > 1 and not several:
        faults.append(f"{len(lines)} lines: {err!r}")
    if SECRET in out + err:
        faults.append(f"a secret: {err!r}")
    if out:
        faults.append(f"printed {out[:100]!r}")
    return faults


def paths_in(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in plain data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path] * bool(path) + [found for key, value in items for found in paths_in(value, (*path, key))]


@st.composite
def study_files(draw: st.DrawFn) -> bytes:
    """Study files most of which are wrong: in a value, a key, or as text."""
    data = copy.deepcopy(STUDY)
    how = draw(st.sampled_from(["value", "value", "key", "missing", "url", "text", "bytes"]))
    *parents, last = draw(st.sampled_from(paths_in(data)))
    place = data
    for part in parents:
        place = place[part]
    if how == "value":
        place[last] = draw(WRONG)
    elif how == "url":
        if draw(st.booleans()):
            data["storage"] = draw(URLS)
        else:
            data["warm_start"] = [{"from": draw(URLS) + draw(st.sampled_from(["", "#", "#earlier"]))}]
    elif how == "missing":
        del place[last]
    elif how == "key" and isinstance(place, dict):
        place[draw(st.text(max_size=12))] = place.pop(last)
    text = yaml.dump(data, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    at = draw(st.integers(0, len(text)))
    if how == "text":
        pieces = [
            "\t",
            "[",
            "}",
            ": ",
            "- ",
            "&a ",
            "*a",
            "!!python/object/apply:os.getcwd []",
            "\x00",
            "'",
            '"',
            "%",
            "...",
        ]
        return text[:at] + draw(st.sampled_from(pieces)).encode() + text[at:]
    if how == "bytes":
        return text[:at] + draw(st.binary(min_size=1, max_size=8)) + text[draw(st.integers(at, len(text))) :]
    return text


def wrong_study_files(directory: Path, *, count: int, generator_seed: int = 0) -> tuple[int, list[str]]:
    """How many wrong study files were tried, and the faults found."""
    tried: list[bytes] = []
    faults: list[str] = []

    def try_one(text: bytes) -> None:
        if len(tried) >= count:
            return
        (directory / "study.yaml").write_bytes(text)
        try:
            found = answer("validate", "study.yaml")
            if found[0] == 0:  # it happens to be a good one
                return
            again = answer("run", "study.yaml")
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            tried.append(text)
            faults.append(f"{type(error).__name__}: {error} for {text!r}")
            return
        tried.append(text)
        faults.extend(f"{fault} for {text!r}" for fault in faults_of(found, several=True))
        if again != found:
            faults.append(f"run answers {again}, validate {found}")
        written = [path.name for path in directory.iterdir() if path.name != "study.yaml"]
        if written:
            faults.append(f"wrote {written} for {text!r}")

    _generate(study_files(), try_one, directory, count, generator_seed)
    return len(tried), faults


def _generate(
    strategy: st.SearchStrategy[Any], use: Callable[[Any], None], directory: Path, count: int, generator_seed: int
) -> None:
    """Have ``use`` called with what the strategy makes, in a directory."""
    quietly = settings(
        max_examples=4 * count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    with contextlib.chdir(directory):
        seed(generator_seed)(quietly(given(strategy)(use)))()


@st.composite
def databases(draw: st.DrawFn, good: bytes) -> bytes:
    """A database with something wrong in its bytes or in its rows; some are read all the same."""
    how = draw(st.sampled_from(["cut", "flipped", "zeroed", "other", "rows", "rows", "tables"]))
    if how == "cut":
        return good[: draw(st.integers(0, len(good) - 1))]
    if how == "flipped":
        data = bytearray(good)
        for _ in range(draw(st.integers(1, 40))):
            data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
        return bytes(data)
    if how == "zeroed":
        page = draw(st.integers(0, len(good) // 4096 - 1)) * 4096
        return good[:page] + bytes(4096) + good[page + 4096 :]
    if how == "other":
        return draw(st.binary(max_size=2000))
    connection = sqlite3.connect(":memory:")
    with contextlib.closing(connection):
        connection.deserialize(_without_log(good))
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        table = draw(st.sampled_from(sorted(tables)))
        if how == "tables":
            connection.execute(f'drop table "{table}"')
        else:
            columns = [row[1] for row in connection.execute(f'pragma table_info("{table}")')]
            value = draw(
                st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=9), st.binary(max_size=9))
            )
            with contextlib.suppress(sqlite3.IntegrityError):
                connection.execute(f'update "{table}" set "{draw(st.sampled_from(columns))}" = ?', (value,))
        connection.commit()
        return connection.serialize()


def _without_log(good: bytes) -> bytes:
    """The same file in the journal mode that a database in memory can have."""
    return good[:18] + b"\x01\x01" + good[20:]


@st.composite
def sweeps(draw: st.DrawFn) -> bytes:
    """CSV files most of which are wrong."""
    rows: list[list[str]] = [["lr", "damping", "loss"], ["0.1", "1e-3", "0.5"], ["0.2", "1e-2", "0.4"]]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.integers(0, len(rows) - 1))
        column = draw(st.integers(0, len(rows[row]) - 1))
        how = draw(st.sampled_from(["cell", "more", "fewer", "none"]))
        if how == "cell":
            rows[row][column] = draw(st.sampled_from(["", "nan", "inf", "x", "lr", "1e999", "\x00", "é", "0x1", "1,5"]))
        elif how == "more":
            rows[row].append(draw(st.text(st.characters(codec="utf-8"), max_size=3)))
        elif how == "fewer" and len(rows[row]) > 1:
            del rows[row][column]
        elif how == "none" and len(rows) > 1:
            del rows[row]
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    text = out.getvalue().encode()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=5)) + text[at:]
    return text


READING = (("status",), ("best",), ("compare",), ("export",), ("dashboard", "--out", "page.html"))


def wrong_databases(directory: Path, good: bytes, *, count: int, generator_seed: int = 0) -> tuple[int, list[str]]:
    """How many wrong databases and imports were tried (half of each), and the faults found."""
    tried: list[bytes] = []
    faults: list[str] = []

    def attempt(data: bytes, name: str, arguments: tuple[str, ...]) -> bool:
        """Whether it was refused."""
        before = {path.name for path in directory.iterdir()}
        try:
            found = answer(*arguments)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            faults.append(f"{arguments[0]}: {type(error).__name__}: {str(error)[:200]}")
            return True
        if found[0] == 0:
            for path in directory.glob("page.html"):
                path.unlink()
            return False
        faults.extend(f"{arguments[0]}: {fault}" for fault in faults_of(found))
        written = {path.name for path in directory.iterdir()} - before
        if written or (directory / name).read_bytes() != data:
            faults.append(f"{arguments[0]}: wrote {sorted(written) or name}")
        return True

    def try_database(data: bytes) -> None:
        if len(tried) >= count // 2:
            return
        for path in directory.iterdir():
            path.unlink()
        (directory / "small.db").write_bytes(data)
        refused = [attempt(data, "small.db", arguments) for arguments in READING]
        if any(refused):
            tried.append(data)

    def try_sweep(data: bytes) -> None:
        if len(tried) >= count:
            return
        for path in directory.iterdir():
            path.unlink()
        (directory / "sweep.csv").write_bytes(data)
        arguments = ("import", "sweep.csv", "--storage", "new.db", "--value", "loss")
        if attempt(data, "sweep.csv", arguments):
            tried.append(data)

    _generate(databases(good), try_database, directory, count, generator_seed)
    _generate(sweeps(), try_sweep, directory, count, generator_seed)
    return len(tried), faults


def good_database(directory: Path) -> bytes:
    """The database of a small study with its confirmations."""
    from tests.cli.stored import make

    path = directory / "made.db"
    make(path)
    data = path.read_bytes()
    path.unlink()
    return data
