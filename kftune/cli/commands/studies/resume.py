"""``kftune resume``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Annotated

import typer

from kftune.cli._options import DataDir, Devices, Overrides, Retry, Storage, Workers

__all__ = ["resume"]


def resume(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A study file's name. Default: the only one stored.")
    ] = None,
    *,
    storage: Storage = None,
    set_: Overrides = None,
    devices: Devices = None,
    workers: Workers = None,
    data_dir: DataDir = None,
    retry: Retry = None,
    widen: Annotated[
        bool,
        typer.Option(
            "--widen", help="Go on in wider boxes, under the name NAME-wide, where the best trials hug an edge."
        ),
    ] = False,
) -> None:
    """Go on with a study from its database alone."""
    from kftune.cli._session import Sitting, stored_config
    from kftune.cli._widening import widened_study
    from kftune.study.config import without_password

    overrides = list(set_ or ())
    config = stored_config(name, storage, overrides)
    sitting = Sitting(config, devices=devices, workers=workers, data_dir=data_dir, retry=retry)
    if widen:
        sitting.check()  # before the wider studies are stored
        sitting = replace(sitting, config=widened_study(config))
        overrides = []  # they are in what was stored
    again = ["kftune", "resume", sitting.config.name, "--storage", without_password(config.storage)]
    for override in overrides:
        again += ["--set", override]
    for option, value in (("--devices", devices), ("--workers", workers), ("--data-dir", data_dir)):
        again += [] if value is None else [option, str(value)]
    raise typer.Exit(replace(sitting, again=shlex.join(again)).search())
