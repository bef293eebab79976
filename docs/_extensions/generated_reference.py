"""Reference pages that are made of the code: study file, command line, database, plug-ins."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx

from kftune._docstrings import documented, plain, summary


def study_file() -> str:
    """Every key of a study file, with type, default and meaning, from the pydantic models."""
    from kftune.study import config
    from kftune.study.config.schema import key_descriptions

    parts = (
        ("The file itself", config.StudyConfig),
        ("problems", config.ProblemConfig),
        ("optimizers", config.OptimizerConfig),
        ("optimizers[].space.NAME", config.DimensionConfig),
        ("budget", config.BudgetConfig),
        ("sampler", config.SamplerConfig),
        ("evaluation", config.EvaluationConfig),
        ("limit", config.LimitConfig),
        ("racing", config.RacingConfig),
        ("pruner", config.PrunerConfig),
        ("warm_start", config.WarmStartConfig),
    )
    lines: list[str] = []
    for title, model in parts:
        heading = title if title.startswith("The") else f"`{title}`"
        lines += [f"## {heading}", "", _markdown(summary(model)), ""]
        meanings = key_descriptions(model)
        rows = []
        for name, field in model.model_fields.items():
            key = field.alias or name
            if model is config.SamplerConfig and key == "options":
                key, meaning = "*option*, or `args` of a target", meanings[key]
                rows.append((key, "mapping or single values", "`{}`", _markdown(meaning)))
                continue
            rows.append((f"`{key}`", _type(field), _default(model, name, field), _markdown(meanings[key])))
        lines += [*_table(("key", "type", "default", "meaning"), rows), ""]
    return "\n".join(lines)


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {_number(getattr(mark, name))}"
        for mark in _metadata(field)
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(mark, name, None) is not None
    ]
    words = _words(field.annotation)
    return f"{words} {' and '.join(dict.fromkeys(bounds))}" if bounds else words


def _metadata(field: FieldInfo) -> list[Any]:
    """The marks of a field, also of ``Annotated`` within ``… | None``."""
    found = list(field.metadata)
    for part in get_args(field.annotation):
        for mark in getattr(part, "__metadata__", ()):
            found += getattr(mark, "metadata", [mark])
    return found


def _words(annotation: Any) -> str:  # noqa: PLR0911 - a case a line
    simple = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        str: "text",
        Any: "value",
        type(None): "null",
    }
    if annotation in simple:
        return simple[annotation]
    if hasattr(annotation, "__metadata__"):
        return _words(get_args(annotation)[0])
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(each) for each in inner)
    if origin is tuple:
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return f"mapping of {_words(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    raise TypeError(f"no words for {annotation!r}")


def _default(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if name == "storage":
        return "`<name>.db`"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if model.__name__ == "DimensionConfig":
        return "the optimizer's own"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _number(value: float) -> str:
    return "2³²" if value == 2**32 else f"{value:g}"


def command_line() -> str:
    """Every command with its arguments and options, from the Typer app."""
    from kftune.cli._app import app

    group: Any = typer.main.get_command(app)
    lines: list[str] = []
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        for path, each in [(f"{name} {sub}", c) for sub, c in inner.items()] if inner else [(name, command)]:
            lines += _command(path, each)
    return "\n".join(lines)


def _command(path: str, command: Any) -> list[str]:
    options = [p for p in command.params if p.opts[0].startswith("-")]
    arguments = [p for p in command.params if p not in options]
    usage = " ".join(["kftune", path, *(_usage(p) for p in arguments), *(["[OPTIONS]"] if options else [])])
    rows = [(f"`{_usage(p)}`", "", _markdown(p.help or "")) for p in arguments]
    for p in options:
        flags = ", ".join([*p.opts, *p.secondary_opts])
        value = "" if p.is_flag else f" {p.metavar or _kind(p)}"
        is_shown = p.default not in (None, False, ()) and not callable(p.default)
        rows.append((f"`{flags}{value}`", f"`{_shown(p.default)}`" if is_shown else "", _markdown(p.help or "")))
    text = re.sub(r"\n\n    (.*)", r"\n\n```text\n\1\n```", command.help or "")
    table = _table(("argument or option", "default", "meaning"), rows) if rows else []
    return [f"## `kftune {path}`", "", text, "", "```text", usage, "```", "", *table, ""]


def _usage(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required or name.startswith("[") else f"[{name}]"


def _kind(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    return {"Path": "PATH", "int": "N", "float": "X"}.get(getattr(annotation, "__name__", ""), "TEXT")


def _shown(value: Any) -> str:
    return ",".join(f"{each}" for each in value) if isinstance(value, list | tuple) else str(value)


def database() -> str:
    """kftune's tables, from the SQLAlchemy models; meanings from the records that are stored in them."""
    from kftune import results
    from kftune.storage import models, records

    points = {
        "run_id": "the run's",
        "position": "0 for the untrained model, then in order",
        **documented(results.CurvePoint, "Attributes"),
    }
    meanings = {
        "kftune_study": documented(records.StudyRecord, "Attributes"),
        "kftune_session": documented(records.SessionRecord, "Attributes"),
        "kftune_run": documented(results.RunResult, "Attributes") | documented(records.RunRecord, "Attributes"),
        "kftune_point": points,
        "kftune_micro_batch": {},
    }
    lines: list[str] = []
    for mapper in models.Base.registry.mappers:
        table = mapper.local_table
        said = meanings[table.name]
        lines += [f"## `{table.name}`", "", _markdown(plain(summary(mapper.class_))), ""]
        rows = []
        for column in table.columns:
            marks = ["key"] if column.primary_key else []
            marks += [f"→ `{key.column.table.name}.{key.column.name}`" for key in column.foreign_keys]
            marks += ["unique"] if column.unique else []
            marks += ["may be null"] if column.nullable else []
            kind = type(column.type).__name__
            rows.append((f"`{column.name}`", f"`{kind}`", ", ".join(marks), _markdown(said.get(column.name, ""))))
        lines += [*_table(("column", "type", "", "meaning"), sorted(rows, key=lambda row: "key" not in row[2])), ""]
    return "\n".join(lines)


def optimizers() -> str:
    """The registry's optimizers: what they are, their own search spaces, and every hyperparameter."""
    from kftune.optim import OPTIMIZERS
    from kftune.study.config import hyperparameters
    from kftune.study.config.schema import LOOP_MEANINGS

    lines: list[str] = []
    for entry in OPTIMIZERS:
        meanings = documented(entry.cls, "Args")
        name = getattr(entry.cls, "__name__", entry.name)
        lines += [
            f"## `{entry.name}`",
            "",
            f"{_markdown(entry.summary)}. {_markdown(entry.paper)}. Class `{name}`.",
            "",
        ]
        rows = []
        for parameter in hyperparameters(entry).values():
            if parameter.of_loop:
                continue
            default = "required" if parameter.is_required else f"`{parameter.default}`"
            searched = "yes" if parameter.name in entry.space.dimensions else ""
            rows.append((f"`{parameter.name}`", default, searched, _markdown(meanings.get(parameter.name, ""))))
        lines += [*_table(("hyperparameter", "default", "searched", "meaning"), rows), ""]
    lines += ["## Of the training loop, for all", ""]
    lines += _table(("hyperparameter", "meaning"), [(f"`{name}`", text) for name, text in LOOP_MEANINGS.items()])
    return "\n".join(lines)


def samplers() -> str:
    """The registry's samplers with their options."""
    from kftune.study.samplers import SAMPLERS

    rows = []
    for entry in SAMPLERS:
        options = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in entry.options.items())
        rows.append((f"`{entry.name}`", _markdown(entry.summary), options, _markdown(entry.source)))
    return "\n".join(_table(("name", "what", "options and defaults", "source"), rows))


def _markdown(text: str) -> str:
    """A docstring's text: roles and literals as code, and nothing that Markdown would take for a mark."""
    pieces = re.split(r"(``[^`]+``|:\w+:`[^`]+`|`[^`]+`)", text)
    made = []
    for piece in pieces:
        code = re.fullmatch(r"(?::\w+:)?`+~?([^`]+?)`+", piece)
        made.append(f"`{code[1]}`" if code else re.sub(r"([*_<>\[\]$])", r"\\\1", piece))
    return "".join(made)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    columns = list(columns)
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    made = [columns, ["---"] * len(columns), *cells]
    return [f"| {' | '.join(row)} |" for row in made]


PAGES = {
    "study_file": study_file,
    "command_line": command_line,
    "database": database,
    "optimizers": optimizers,
    "samplers": samplers,
}
"""Name of the written file → what makes it."""


def write(app: Sphinx) -> None:
    """Write every page under ``_generated``, where pages include it from; unchanged ones are left alone."""
    directory = Path(app.srcdir) / "_generated"
    directory.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        file, text = directory / f"{name}.md", f"{make()}\n"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Write the pages when a build begins."""
    app.connect("builder-inited", write, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
