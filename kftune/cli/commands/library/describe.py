"""``kftune describe``."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kftune._docstrings import documented, plain
from kftune.cli._options import AsJson, DataDir
from kftune.cli._settings import hyperparameter
from kftune.cli.rendering.coverage import coverage, print_coverage
from kftune.errors import UnknownNameError, UsageError
from kftune.progress.output import print_json, print_table, say
from kftune.space import Categorical, Dimension, Float
from kftune.wording import number

if TYPE_CHECKING:
    from kftune.optim import OptimizerEntry
    from kftune.problems import ProblemEntry
    from kftune.study.samplers import SamplerEntry

__all__ = ["describe"]


def describe(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Of an optimizer, a problem or a sampler; or package.module:attribute of your own."
        ),
    ],
    *,
    problem: Annotated[
        str | None,
        typer.Option("--problem", metavar="NAME", help="What an optimizer does to every parameter of this problem."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --problem: a hyperparameter. May be repeated."),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show an optimizer's parameters and search space, a problem's data, or a sampler's options."""
    if problem is None and settings:
        raise UsageError("--set: is for hyperparameters on a problem, which --problem names")
    described = _described(name) if problem is None else _coverage(name, problem, settings or [], data_dir)
    if as_json:
        print_json(described)
    else:
        _PRINTERS[described["kind"]](described)


def _described(name: str) -> dict[str, Any]:
    from kftune._targets import is_target
    from kftune.optim import OPTIMIZERS
    from kftune.problems import PROBLEMS
    from kftune.study.samplers import SAMPLERS

    if is_target(name):
        return _target(name)
    if name in OPTIMIZERS:
        return _optimizer(OPTIMIZERS.get(name))
    if name in PROBLEMS:
        return _problem(PROBLEMS.get(name))
    if name in SAMPLERS:
        return _sampler(SAMPLERS.get(name))
    names = (*OPTIMIZERS.names(), *PROBLEMS.names(), *SAMPLERS.names())
    raise UnknownNameError("optimizer, problem or sampler", name, names)


def _coverage(name: str, problem: str, settings: Sequence[str], data_dir: Path | None) -> dict[str, Any]:
    """What an optimizer would do to every parameter of a problem's model."""
    from kftune._targets import importable_from
    from kftune.optim import OPTIMIZERS
    from kftune.problems import PROBLEMS, default_data_dir
    from kftune.training.coverage import would_treat

    with importable_from(Path.cwd()):
        optimizer, trained = OPTIMIZERS.get(name), PROBLEMS.get(problem)
        params: dict[str, Any] = {}
        for setting in settings:
            key, equals, value = (part.strip() for part in setting.partition("="))
            if not equals:
                raise UsageError(f"--set: must look like key=value, got {setting!r}")
            params[key] = hyperparameter(optimizer, key, value, "--set")
        found = would_treat(optimizer, trained, params=params, data_dir=data_dir or default_data_dir())
    return coverage(optimizer.name, trained.name, params, found)


def _target(target: str) -> dict[str, Any]:
    """An optimizer or a problem of the user's own, from the current directory or an installed module."""
    from kftune._targets import importable_from, load_target
    from kftune.optim import OPTIMIZERS
    from kftune.problems import PROBLEMS, is_problem

    with importable_from(Path.cwd()):
        if is_problem(load_target(target)):
            return _problem(PROBLEMS.get(target))
        return _optimizer(OPTIMIZERS.get(target))


def _optimizer(entry: OptimizerEntry) -> dict[str, Any]:
    from kftune.optim import TargetEntry
    from kftune.study.config import hyperparameters
    from kftune.study.config.schema import LOOP_MEANINGS

    target = entry if isinstance(entry, TargetEntry) else None
    meanings = {name: plain(text) for name, text in documented(entry.cls, "Args").items()} | LOOP_MEANINGS
    joined = target.joined if target is not None else {}
    meanings |= {
        part: f"{name}[{i}]: {meanings.get(name, '')}" for name, parts in joined.items() for i, part in enumerate(parts)
    }
    parameters = [
        {
            "name": parameter.name,
            "default": None if parameter.default is inspect.Parameter.empty else parameter.default,
            "meaning": meanings.get(parameter.name, ""),
        }
        for parameter in hyperparameters(entry).values()
    ]
    arguments = "".join(f", {name}={value!r}" for name, value in entry.example.items())
    class_name = getattr(entry.cls, "__name__", entry.name)
    return {
        "kind": "optimizer",
        "name": entry.name,
        "summary": entry.summary,
        "paper": entry.paper,
        "second_order": entry.second_order,
        "parameters": parameters,
        "space": entry.space.to_dict(),
        "example": None if target else f'{class_name}(model{arguments}, likelihood="categorical")',
    }


def _problem(entry: ProblemEntry) -> dict[str, Any]:
    return {
        "kind": "problem",
        "name": entry.name,
        "summary": entry.summary,
        "source": entry.source,
        "n_train": entry.n_train,
        "n_test": entry.n_test,
        "args": dict(entry.args),
        "dataset": entry.dataset,
        "has_accuracy": entry.has_accuracy,
    }


def _sampler(entry: SamplerEntry) -> dict[str, Any]:
    return {
        "kind": "sampler",
        "name": entry.name,
        "summary": entry.summary,
        "source": entry.source,
        "options": dict(entry.options),
    }


def _print_optimizer(described: dict[str, Any]) -> None:
    from kftune.space import from_dict

    say(f"{described['name']}: {described['summary']}", bold=True)
    if described["paper"]:
        say(f"paper: {described['paper']}")
    say("\nparameters", bold=True)
    print_table(
        ("name", "default", "meaning"),
        [(p["name"], number(p["default"]), p["meaning"]) for p in described["parameters"]],
        wrap=("default", "meaning"),
    )
    if described["example"] is None:
        say("\nno search space of its own: a study file gives it one")
        return
    space = from_dict(described["space"])
    say("\nsearch space", bold=True)
    rows = [_dimension_cells(name, dimension) for name, dimension in space.dimensions.items()]
    columns = ("name", "searched as", "range", "scale", "only where")
    n_columns = 5 if any(row[-1] for row in rows) else 4
    print_table(columns[:n_columns], [row[:n_columns] for row in rows], wrap=("range", "only where"))
    if space.fixed:
        say("fixed: " + ", ".join(f"{name}={number(value)}" for name, value in space.fixed.items()))
    say("\nin Python", bold=True)
    say(textwrap.fill(described["example"], width=80, subsequent_indent=" " * (described["example"].index("(") + 1)))


def _dimension_cells(name: str, dimension: Dimension) -> tuple[str, ...]:
    when = dimension.when
    condition = "" if when is None else f"{when.name} is {' or '.join(str(value) for value in when.values)}"
    if isinstance(dimension, Categorical):
        scale, values = "choice", ", ".join(number(choice) for choice in dimension.choices)
    else:
        low, high = dimension.low, dimension.high
        if isinstance(dimension, Float) and dimension.complement:
            low, high = round(1 - high, 12), round(1 - low, 12)
        scale, values = "log" if dimension.log else "linear", f"{number(low)} to {number(high)}"
    return (name, dimension.sampled_name(name), values, scale, condition)


def _print_problem(described: dict[str, Any]) -> None:
    say(f"{described['name']}: {described['summary']}", bold=True)
    if described["source"]:
        say(f"source: {described['source']}")
    say(f"examples: {described['n_train']} for training, {described['n_test']} for testing")
    dataset = described["dataset"]
    say(f"data: `kftune data fetch {dataset}`" if dataset else "data: come with an installed package")
    say(f"objectives: test_loss, train_loss{', test_error' if described['has_accuracy'] else ''}")
    _print_options("args", described["args"])


def _print_sampler(described: dict[str, Any]) -> None:
    say(f"{described['name']}: {described['summary']}", bold=True)
    say(f"source: {described['source']}")
    _print_options("options", described["options"])


def _print_options(what: str, options: dict[str, Any]) -> None:
    shown = ", ".join(f"{name}={number(value)}" for name, value in options.items())
    say(f"{what} and their defaults: {shown}" if shown else f"{what}: none")


_PRINTERS = {
    "optimizer": _print_optimizer,
    "problem": _print_problem,
    "sampler": _print_sampler,
    "coverage": print_coverage,
}
