"""``kftune profile`` as a person calls it; no assertion on real seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from kftune.optim import OPTIMIZERS
from kftune.training.profile import Progress
from tests.cli.conftest import Command
from tests.cli.test_bad_input import assert_one_line

QUICK = ("--batch-size", "16", "--rounds", "1", "--steps", "1")
SHORT = {"inverses_every": 2, "statistics_every": 1}
PERIODS = [
    word for name in ("kfac", "foof") for key, n in SHORT.items() for word in ("--set", f"{name}.{key}={n}")
]  # fmt: skip


def test_json_is_complete(kftune: Command) -> None:
    result = kftune("profile", "digits_mlp", "--optimizers", "sgd,kfac", "--json", *QUICK, "--set", "kfac.lr=0.05")
    assert result.code == 0
    found = json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["command"] == (
        "kftune profile digits_mlp --optimizers sgd,kfac --set kfac.lr=0.05 --batch-size 16 --steps 1 --rounds 1"
    )
    assert (found["problem"], found["batch_size"], found["rounds"]) == ("digits_mlp", 16, 1)
    assert found["machine"].keys() == {
        "device", "device_name", "cpu", "cores", "threads", "system", "python", "torch", "kftune"
    }  # fmt: skip
    assert found["machine"]["threads"] == 1
    assert found["sgd"]["optimizer"] == "torch.optim.SGD"
    assert [layer["n_rows"] for layer in found["layers"]] == [16, 16, 16]
    sgd, kfac = found["optimizers"]
    assert (sgd["label"], kfac["label"]) == ("sgd", "kfac")
    assert sgd["floor"] is None
    assert (kfac["params"]["lr"], kfac["params"]["statistics_every"]) == (0.05, 10)
    assert (kfac["period"], kfac["steps"], kfac["sgd_steps"]) == (100, 100, 34)
    (measured,) = kfac["rounds"]
    mean = (measured["sgd_before"] + measured["sgd_after"]) / 2
    assert measured["ratio"] == pytest.approx(measured["optimizer"] / mean)
    assert kfac["ratio"]["median"] == measured["ratio"]
    assert kfac["phases"]["statistics"] > 0
    assert kfac["peak_memory_bytes"] > found["sgd"]["peak_memory_bytes"]


def test_tables_and_the_file(kftune: Command, workdir: Path) -> None:
    result = kftune(
        "profile", "digits_mlp", *QUICK, *PERIODS, "--optimizers", "sgd,kfac,foof",
        "--variant", "kfac:statistics_every=1,inverses_every=1", "--data-dir", str(workdir), "--out", "made/it.md",
    )  # fmt: skip
    assert result.code == 0
    assert "\x1b" not in result.out
    assert [line for line in result.out.splitlines() if cell_len(line) > 80] == []
    assert "…" not in result.out
    assert "1 thread" in result.out
    assert result.out.endswith("\nwrote made/it.md\n")
    text = (workdir / "made" / "it.md").read_text(encoding="utf-8")
    assert str(workdir) not in text
    assert "--variant kfac:statistics_every=1,inverses_every=1 --set kfac.inverses_every=2" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| kfac")]
    assert [row[0] for row in rows] == ["| kfac", "| kfac statistics_every=1 inverses_every=1"] * 2
    assert [len(row) for row in rows] == [6, 6, 7, 7]
    assert "* kfac: inverses_every=2, statistics_every=1" in text


def test_all_optimizers_by_default(kftune: Command) -> None:
    short = [
        word
        for entry in OPTIMIZERS
        for name, value in _periods(entry.name)
        for word in ("--set", f"{entry.name}.{name}={min(2, value)}")
    ]
    result = kftune("profile", "digits_mlp", *QUICK, *short, "--json")
    assert result.code == 0
    found = json.loads(result.out)["optimizers"]
    assert [each["label"] for each in found] == list(OPTIMIZERS.names())
    assert [each["label"] for each in found if each["failure"]] == []


def _periods(name: str) -> list[tuple[str, int]]:
    from kftune.training.profile._run import complete_params

    params = complete_params(OPTIMIZERS.get(name), {})
    return [(key, value) for key, value in params.items() if key.endswith("_every") and type(value) is int]


def test_a_variant_alone_and_an_argument_of_the_problem(kftune: Command) -> None:
    result = kftune(
        "profile", "digits_mlp", *QUICK, "--json", "--variant", "foof:inverses_every=2,damping=1e-2",
        "--set", "digits_mlp.bias=false", "--set", "foof.damping=3", "--set", "foof.lr=2",
    )  # fmt: skip
    assert result.code == 0
    found = json.loads(result.out)
    assert [layer["d_A"] for layer in found["layers"]] == [64, 64, 64]
    (foof,) = found["optimizers"]
    assert {name: foof["params"][name] for name in ("inverses_every", "damping", "lr")} == {
        "inverses_every": 2,
        "damping": 0.01,
        "lr": 2.0,
    }


def test_somebodys_own_problem_and_optimizer_in_this_directory(kftune: Command, workdir: Path) -> None:
    (workdir / "mine.py").write_text(
        "from kftune.optim import SGD\n\n\nclass Plain(SGD):\n    pass\n", encoding="utf-8"
    )
    result = kftune("profile", "digits_mlp", *QUICK, "--json", "--variant", "mine:Plain:lr=0.2")
    assert result.code == 0, result.err
    (plain,) = json.loads(result.out)["optimizers"]
    assert plain["params"]["lr"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["digit_mlp"], "unknown problem 'digit_mlp'; did you mean 'digits_mlp'?"),
        (["digits_mlp", "--optimizers", "kfacc"], "unknown optimizer 'kfacc'; did you mean 'kfac'?"),
        (["digits_mlp", "--optimizers", ""], "--optimizers: must be all or names of optimizers, got ''"),
        (["digits_mlp", "--optimizers", "sgd,sgd"], "'sgd' stands twice in --optimizers and --variant"),
        (["digits_mlp", "--batch-size", "1438"], "batch size must be between 1 and the 1437 training examples"),
        (["digits_mlp", "--batch-size", "0"], "Invalid value for '--batch-size'"),
        (["digits_mlp", "--rounds", "0"], "Invalid value for '--rounds'"),
        (["digits_mlp", "--variant", "kfac"], "--variant: must look like name:key=value,key=value, got 'kfac'"),
        (["digits_mlp", "--variant", "kfac:lr=1,2"], "--variant: must look like name:key=value,key=value, got 'kfac"),
        (["digits_mlp", "--variant", "kfak:lr=1"], "unknown optimizer 'kfak'; did you mean 'kfac'?"),
        (["digits_mlp", "--variant", "kfac:lrr=1"], "--variant: kfac has no hyperparameter 'lrr'; did you mean 'lr'?"),
        (["digits_mlp", "--variant", "kfac:lr=x"], "--variant: kfac.lr: must be a number, got 'x'"),
        (["digits_mlp", "--variant", "kfac:lr=-1"], "kfac:lr=-1: lr must be in [0, inf), got -1"),
        (["digits_mlp", "--set", "kfac.batch_size=3"], "--set: kfac has no hyperparameter 'batch_size'"),
        (["digits_mlp", "--set", "lr=3"], "--set: must look like name.key=value, got 'lr=3'"),
        (["digits_mlp", "--set", "digits_mlp.bia=true"], "--set: problem digits_mlp has no argument 'bia'; did you"),
        (["digits_mlp", "--set", "digits_mlp.bias=3"], "bias must be true or false, got 3"),
        (["digits_mlp", "--set", "kfak.lr=3"], "unknown name in --set 'kfak'; did you mean 'kfac'?"),
        (["digits_mlp", "--device", "tpu"], "--device: there is no device 'tpu' in this machine (available: cpu"),
        (["mnist_mlp"], "mnist: train-images-idx3-ubyte.gz, "),
        (["digits_mlp", "--out", "."], ". cannot be written: Is a directory"),
        (["digits_mlp", "--out", "file/x.md"], "file/x.md cannot be written: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(kftune: Command, workdir: Path, arguments: list[str], line: str) -> None:
    (workdir / "file").touch()
    assert_one_line(*kftune("profile", *arguments), line)
    assert [path.name for path in workdir.iterdir()] == ["file"]


def test_an_interrupt_says_so(kftune: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kftune.training.profile.profile", interrupted)
    result = kftune("profile", "digits_mlp")
    assert (result.code, result.out, result.err) == (130, "", "interrupted; nothing was written\n")


def test_progress_is_shown_when_it_takes_long(
    kftune: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kftune.progress.profiles import ProfileProgress

    with ProfileProgress() as shown:
        shown(Progress("kfac", 1.9, 1.9))
    assert capsys.readouterr().err == ""
    with ProfileProgress() as shown:
        shown(Progress("kfac", 100.0, 100.0))
        shown(Progress("kfac", 100.0, 90.0))
        shown(Progress("foof", 100.0, 50.4))
    assert capsys.readouterr() == ("", "kfac: measuring, 1 min 40 s left\nfoof: measuring, 50 s left\n")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ProfileProgress() as shown:
        shown(Progress("kfac", 100.0, 90.0))
    assert "1 min 30 s left" in capsys.readouterr().err
