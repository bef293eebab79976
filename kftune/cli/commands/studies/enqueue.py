"""``kftune enqueue``."""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import Annotated

import typer

from kftune.cli._options import AsJson, DataDir, Overrides, Storage
from kftune.cli._settings import parsed
from kftune.cli._target import given_storage
from kftune.errors import UsageError
from kftune.progress.output import print_json, say

__all__ = ["enqueue"]


def enqueue(
    study: Annotated[
        str,
        typer.Argument(
            metavar="STUDY", help="A study file, the name of a stored one, or one study of it, NAME/PROBLEM/OPTIMIZER."
        ),
    ],
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="Hyperparameters; the sampler chooses the others.")
    ],
    *,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help="Its label; needed where the file has several.")
    ] = None,
    problem: Annotated[str | None, typer.Option("--problem", help="Its label. Default: every problem.")] = None,
    storage: Storage = None,
    set_: Overrides = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Have settings of your own tried next, before what the sampler proposes; also before the first run."""
    from kftune.cli._session import stored_config
    from kftune.storage.repository import Repository
    from kftune.study.config import load_config
    from kftune.study.sessions.given import enqueue_given, find_given

    values = dict(_setting(text) for text in settings)
    if study.endswith((".yaml", ".yml")):
        config = load_config(study, set_ or ())
        url = given_storage(storage)
        config = config if url is None else config.model_copy(update={"storage": url})
    else:
        name, *parts = study.split("/")
        if len(parts) == 2:
            problem, optimizer = parts
        config = stored_config(name if len(parts) in (0, 2) else study, storage, set_ or ())
    given = find_given(config, values, optimizer=optimizer, problem=problem)
    told: list[str] = []
    with Repository.open(config.storage) as repository:
        found = enqueue_given(config, given, repository=repository, say=told.append)
        database = repository.name
    if as_json:
        print_json({"database": database, "enqueued": found, "notes": told})
        return
    for text in told:
        say(text)
    for name, number in found.items():
        say(f"{name}: {', '.join(settings)} is trial {number}", whole=True)
    if found:
        again = ["run", study] if study.endswith((".yaml", ".yml")) else ["resume", config.name, "--storage", database]
        say(f"Go on with: {shlex.join(['kftune', *again])}", whole=True)


def _setting(text: str) -> tuple[str, bool | int | float | str | None]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{text!r} must be KEY=VALUE, e.g. lr=0.1")
    read = parsed(value, key)
    if isinstance(read, str):
        with suppress(ValueError):
            read = float(read)  # YAML takes 1e-3 for text
    return key, read
