"""``kftune benchmark samplers``."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kftune.cli._files import write_text
from kftune.cli._options import AsJson
from kftune.cli._settings import parsed
from kftune.errors import UnknownNameError, UsageError
from kftune.progress.output import print_json, say

if TYPE_CHECKING:
    from kftune.study.benchmarking.benchmark import Contestant, Regret

__all__ = ["app"]

app = typer.Typer(help="Measure parts of kftune against each other.", no_args_is_help=True)

_SAMPLERS = "gpyopt,gpyopt:faithful=true,optuna_gp,tpe,random"
_OBSERVATIONS = "50,150,300,800"
_SEEDS, _TRIALS, _REPETITIONS = 20, 50, 3
_TIMED_FUNCTION = "kfac"
_ALL = "all"
_EXIT_INTERRUPTED = 130


@app.callback()
def _root() -> None:
    """Measure parts of kftune against each other."""


@app.command("samplers")
def samplers(
    *,
    names: Annotated[
        str,
        typer.Option(
            "--samplers", metavar="NAME[:OPTION=VALUE],...", help="Which; the first is compared to the others."
        ),
    ] = _SAMPLERS,
    functions: Annotated[
        str, typer.Option("--functions", metavar="all|NAME,...", help="The functions that are searched.")
    ] = _ALL,
    seeds: Annotated[
        int, typer.Option("--seeds", min=0, help="Searches per function and sampler; 0 for none.")
    ] = _SEEDS,
    trials: Annotated[int, typer.Option("--trials", min=9, help="Of a search; the first 8 are random.")] = _TRIALS,
    observations: Annotated[
        str,
        typer.Option("--observations", metavar="N,...", help="Where the time of a suggestion is measured; 0 for none."),
    ] = _OBSERVATIONS,
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Measurements of a time.")] = _REPETITIONS,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Searches at a time.")] = 1,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="FILE",
            help="Add every finished search to this file; those in it, by the same version, are not made again.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the tables to this Markdown file too.")] = None,
    as_json: AsJson = False,
) -> int:
    """Compare samplers: seconds per suggestion, and what they find on test functions."""
    from kftune.cli.rendering.benchmark_tables import machine, markdown, print_benchmark
    from kftune.progress.shares import ShareProgress
    from kftune.study.benchmarking import benchmark as _benchmark

    contestants = [_contestant(text) for text in _names(names)]
    tested = _functions(functions)
    numbers = _numbers(observations)
    known = [] if keep is None else _read(keep)
    try:
        with ShareProgress() as progress:
            timings = _benchmark.measure_seconds(
                contestants,
                function=_TIMED_FUNCTION,
                observations=numbers,
                repetitions=repetitions,
                done=progress.part("seconds per suggestion"),
            )
            told = progress.part("regret")

            def finished(regret: Regret, share: float) -> None:
                if keep is not None:
                    _add(keep, regret)
                told(f"{regret.function}, {regret.contestant}, seed {regret.seed}", share)

            regrets = _benchmark.measure_regrets(
                contestants,
                functions=tested,
                n_seeds=seeds,
                n_trials=trials,
                processes=processes,
                known=known,
                done=finished,
            )
    except KeyboardInterrupt:
        print("interrupted" if keep is None else f"interrupted; {keep} has what was finished", file=sys.stderr)
        return _EXIT_INTERRUPTED
    result = _benchmark.Benchmark(
        labels=[contestant.label for contestant in contestants], timings=timings, regrets=regrets
    )
    command = _command(names, functions, seeds, trials, observations, repetitions)
    if as_json:
        print_json({"command": command, "machine": machine()} | result.to_dict())
    else:
        print_benchmark(result)
    if out is not None:
        write_text(out, markdown(result, command))
        if not as_json:
            say(f"\nwrote {out}", whole=True)
    return 0


def _names(text: str) -> list[str]:
    """Samplers between commas; after a colon, commas separate options: ``gpyopt:jitter=0.1,faithful=true,tpe``."""
    parts: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if "=" in part and ":" not in part and parts:
            parts[-1] += f",{part}"
        elif part:
            parts.append(part)
    if not parts:
        raise UsageError(f"--samplers: must be names of samplers, got {text!r}")
    for i, part in enumerate(parts):
        if part in parts[:i]:
            raise UsageError(f"--samplers: {part!r} stands twice")
    return parts


def _contestant(text: str) -> Contestant:
    from kftune.study.benchmarking.benchmark import Contestant
    from kftune.study.samplers import SAMPLERS

    name, _, settings = text.partition(":")
    entry = SAMPLERS.get(name)
    options: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UsageError(f"--samplers: must look like name:option=value, got {text!r}")
        options[key] = parsed(value, "--samplers")
    entry.resolve_options(options)
    return Contestant(text.replace(":", " "), name, options)


def _functions(text: str) -> list[str]:
    from kftune.study.benchmarking.test_functions import TEST_FUNCTIONS

    names = list(TEST_FUNCTIONS) if text == _ALL else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in TEST_FUNCTIONS:
            raise UnknownNameError("test function", name, TEST_FUNCTIONS)
    if not names:
        raise UsageError(f"--functions: must be all or names of test functions, got {text!r}")
    return names


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts == ["0"]:
        return []
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--observations: must be whole numbers such as {_OBSERVATIONS}, or 0, got {text!r}")
    return sorted({int(part) for part in parts})


def _read(path: Path) -> list[Regret]:
    """Searches that were kept."""
    from kftune.study.benchmarking.benchmark import Regret

    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [Regret(**json.loads(line)) for line in lines]
    except OSError as error:
        raise UsageError(f"--keep: {path} cannot be read: {error.strerror}") from None
    except (TypeError, ValueError):
        raise UsageError(f"--keep: {path} is no file that `kftune benchmark samplers --keep` wrote") from None


def _add(path: Path, regret: Regret) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            print(json.dumps(dataclasses.asdict(regret)), file=file)
    except OSError as error:
        raise UsageError(f"--keep: {path} cannot be written: {error.strerror}") from None


def _command(*values: Any) -> str:
    """The command line that measures the same."""
    options = ("--samplers", "--functions", "--seeds", "--trials", "--observations", "--repetitions")
    defaults: Sequence[Any] = (_SAMPLERS, _ALL, _SEEDS, _TRIALS, _OBSERVATIONS, _REPETITIONS)
    words = ["kftune", "benchmark", "samplers"]
    for option, value, default in zip(options, values, defaults, strict=True):
        words += [] if value == default else [option, str(value)]
    return shlex.join(words)
