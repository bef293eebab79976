"""``kftune profile``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kftune.cli._files import write_text
from kftune.cli._options import AsJson, DataDir
from kftune.cli._settings import hyperparameter, parsed
from kftune.errors import UnknownNameError, UsageError, suggestion
from kftune.progress.output import print_json, say

if TYPE_CHECKING:
    from kftune.problems import OwnProblem, ProblemEntry
    from kftune.training.profile import Contestant

__all__ = ["profile"]

_ALL = "all"
_AUTO = "auto"
_BATCH_SIZE, _ROUNDS, _THREADS = 256, 5, 1
_EXIT_INTERRUPTED = 130


def profile(
    problem: Annotated[str, typer.Argument(metavar="PROBLEM", help="What is trained; see `kftune list problems`.")],
    *,
    optimizers: Annotated[
        str | None, typer.Option("--optimizers", metavar="all|NAME,...", help="Default: all, without --variant.")
    ] = None,
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="NAME:KEY=VALUE,...",
            help="One optimizer with settings, e.g. kfac:statistics_every=1,inverses_every=1. May be repeated.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME.KEY=VALUE",
            help="Change a hyperparameter of an optimizer or an argument of the problem. May be repeated.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples of a step.")] = _BATCH_SIZE,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Steps of a block, rounded up to whole periods. Default: 0.3 seconds."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Blocks per optimizer.")] = _ROUNDS,
    threads: Annotated[int, typer.Option("--threads", min=1, max=1024, help="CPU threads.")] = _THREADS,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:0; auto is cuda if there is one.")] = _AUTO,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the tables to this Markdown file too.")] = None,
    as_json: AsJson = False,
) -> int:
    """Measure the step of optimizers as a multiple of SGD's, on this machine and your problem."""
    from kftune._targets import importable_from
    from kftune.cli.rendering.profile_tables import markdown, print_profile
    from kftune.problems import default_data_dir, find_problem
    from kftune.progress.profiles import ProfileProgress
    from kftune.study.executors.leases import leased
    from kftune.training.profile import ProfileSpec
    from kftune.training.profile import profile as measure

    with importable_from(Path.cwd()):
        entry = find_problem(problem)
        contestants = _contestants(optimizers, variants or [])
        contestants, problem_args = _with_settings(contestants, problem, entry, settings or [])
        spec = ProfileSpec(
            problem=problem,
            problem_args=problem_args,
            contestants=contestants,
            batch_size=batch_size,
            rounds=rounds,
            steps=steps,
            device=_device(device),
            threads=threads,
            data_dir=str(data_dir if data_dir is not None else default_data_dir()),
        )
        if out is not None:
            _make_place(out)
        try:
            with (
                leased(spec.device, threads=threads, name="kftune profile", on_wait=_say_waiting),
                ProfileProgress() as progress,
            ):
                measured = measure(spec, progress)
        except KeyboardInterrupt:
            print("interrupted; nothing was written", file=sys.stderr)
            return _EXIT_INTERRUPTED
    options: dict[str, Any] = {
        "--optimizers": optimizers,
        "--variant": variants,
        "--set": settings,
        "--batch-size": batch_size,
        "--steps": steps,
        "--rounds": None if rounds == _ROUNDS else rounds,
        "--threads": None if threads == _THREADS else threads,
        "--device": None if device == _AUTO else device,
    }
    command = _command(problem, options)
    if as_json:
        print_json({"command": command} | measured.to_dict())
    else:
        print_profile(measured)
    if out is not None:
        write_text(out, markdown(measured, command))
        if not as_json:
            say(f"\nwrote {out}", whole=True)
    return 0


def _say_waiting(holders: Sequence[object]) -> None:
    print(f"waiting for a run of {', '.join(map(str, holders)) or 'another process'} to end", file=sys.stderr)


def _contestants(optimizers: str | None, variants: Sequence[str]) -> list[Contestant]:
    """Everything that ``--optimizers`` and ``--variant`` name."""
    from kftune.optim import OPTIMIZERS
    from kftune.training.profile import Contestant

    if optimizers == _ALL or (optimizers is None and not variants):
        found = [Contestant(label=name, optimizer=name, required=False) for name in OPTIMIZERS.names()]
    else:
        names = [name.strip() for name in (optimizers or "").split(",") if name.strip()]
        found = [Contestant(label=name, optimizer=name) for name in names]
        for name in names:
            OPTIMIZERS.get(name)  # or an error
    found += [_variant(text) for text in variants]
    if not found:
        raise UsageError(f"--optimizers: must be all or names of optimizers, got {optimizers!r}")
    labels = [contestant.label for contestant in found]
    for i, label in enumerate(labels):
        if label in labels[:i]:
            raise UsageError(f"{label!r} stands twice in --optimizers and --variant")
    return found


def _variant(text: str) -> Contestant:
    """``kfac:statistics_every=1,inverses_every=1``. The name may be a target, which has a colon of its own."""
    from kftune.optim import OPTIMIZERS
    from kftune.training.profile import Contestant

    name, _, settings = text.rpartition(":")
    if not name or "=" not in settings:
        raise UsageError(f"--variant: must look like name:key=value,key=value, got {text!r}")
    entry, params = OPTIMIZERS.get(name), {}
    for setting in settings.split(","):
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UsageError(f"--variant: must look like name:key=value,key=value, got {text!r}")
        params[key] = hyperparameter(entry, key, value, "--variant")
    return Contestant(label=text, optimizer=name, params=params)


def _with_settings(
    contestants: Sequence[Contestant], problem: str, entry: ProblemEntry | OwnProblem, settings: Sequence[str]
) -> tuple[list[Contestant], dict[str, Any]]:
    """The contestants and the problem's arguments with every ``--set``; a variant's own settings win."""
    from dataclasses import replace

    from kftune.optim import OPTIMIZERS

    params: dict[str, dict[str, Any]] = {contestant.optimizer: {} for contestant in contestants}
    args: dict[str, Any] = {}
    for setting in settings:
        path, equals, value = (part.strip() for part in setting.partition("="))
        name, dot, key = path.rpartition(".")
        if not equals or not dot:
            raise UsageError(f"--set: must look like name.key=value, got {setting!r}")
        if name in params:
            params[name][key] = hyperparameter(OPTIMIZERS.get(name), key, value, "--set")
        elif name == problem:
            if key not in entry.args:
                raise UsageError(f"--set: problem {problem} has no argument {key!r}{suggestion(key, entry.args)}")
            args[key] = parsed(value, "--set")
        else:
            raise UnknownNameError("name in --set", name, (*params, problem))
    return [replace(c, params=params[c.optimizer] | dict(c.params)) for c in contestants], args


def _device(name: str) -> str:
    """A device of this machine."""
    import torch

    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if name == _AUTO:
        return cuda[0] if cuda else "cpu"
    chosen = "cuda:0" if name == "cuda" else name
    if chosen not in {"cpu", *cuda}:
        raise UsageError(
            f"--device: there is no device {name!r} in this machine (available: {', '.join(['cpu', *cuda])})"
        )
    return chosen


def _command(problem: str, options: dict[str, Any]) -> str:
    """The command line that measures the same; where data and results lie is left out."""
    words = ["kftune", "profile", problem]
    for option, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            words += [] if each is None else [option, str(each)]
    return shlex.join(words)


def _make_place(out: Path) -> None:
    """Fail before a long measurement rather than after it."""
    if out.is_dir():
        raise UsageError(f"{out} cannot be written: Is a directory")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None
