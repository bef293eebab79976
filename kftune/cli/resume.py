"""``kftune resume``."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from kftune.cli._options import DataDir, Devices, Overrides, Storage
from kftune.cli._target import find_target
from kftune.errors import StorageError

__all__ = ["resume"]


def resume(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A study file's name. Default: the only one stored.")
    ] = None,
    *,
    storage: Storage = None,
    set_: Overrides = None,
    devices: Devices = None,
    data_dir: DataDir = None,
) -> None:
    """Go on with a study from its database alone."""
    from kftune.cli._session import run_session
    from kftune.storage.repository import Repository
    from kftune.study.config import config_from_dict

    target = find_target(name, storage)
    with Repository.open(target.storage, create=False) as repository:  # brings an older database up to date
        names = target.file_names(repository)
        if len(names) > 1:
            raise StorageError(f"{repository.name} holds several studies: name one of {', '.join(names)}")
        stored = dict(repository.studies(names[0])[-1].config)
        source = f"{names[0]} in {repository.name}"
        place = repository.name
    overrides = list(set_ or ())
    # The database may have been moved since; its password is not stored in it.
    config = config_from_dict(stored | {"storage": target.storage}, source, overrides)
    again = ["kftune", "resume", names[0], "--storage", storage or place]
    for override in overrides:
        again += ["--set", override]
    for option, value in (("--devices", devices), ("--data-dir", data_dir)):
        again += [] if value is None else [option, str(value)]
    raise typer.Exit(run_session(config, devices=devices, data_dir=data_dir, again=shlex.join(again)))
