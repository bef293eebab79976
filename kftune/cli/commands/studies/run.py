"""``kftune run``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Annotated

import typer

from kftune.cli._options import DataDir, Devices, Overrides, Retry, Storage, StudyFile, Workers
from kftune.cli._target import given_storage
from kftune.errors import UsageError

__all__ = ["run"]


def run(
    study: StudyFile,
    *,
    set_: Overrides = None,
    devices: Devices = None,
    workers: Workers = None,
    data_dir: DataDir = None,
    retry: Retry = None,
    storage: Storage = None,
    widen: Annotated[
        str | None,
        typer.Option(
            "--widen",
            metavar="NEW",
            help="The file has a wider box than its stored study: go on under the name NEW, which begins with the "
            "stored trials.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, run and write nothing.")] = False,
) -> None:
    """Run a study file, or go on with it where it was left."""
    from kftune.cli._session import Sitting
    from kftune.cli._widening import widened_by_hand
    from kftune.cli.rendering.summary import print_summary
    from kftune.study.config import load_config, make_plans, without_password

    overrides = list(set_ or ())
    config = load_config(study, overrides)
    url = given_storage(storage)
    config = config if url is None else config.model_copy(update={"storage": url})
    again = ["kftune", "run", str(study)]
    for override in overrides:
        again += ["--set", override]
    for option, value in (
        ("--devices", devices),
        ("--workers", workers),
        ("--data-dir", data_dir),
        ("--storage", storage),
    ):
        again += [] if value is None else [option, str(value)]
    again += [] if widen is None else ["--widen", widen]
    sitting = Sitting(
        config,
        devices=devices,
        workers=workers,
        data_dir=data_dir,
        again=shlex.join(map(without_password, again)),
        file=str(study),
        retry=retry,
    )
    if widen is not None:
        sitting.check()  # before the wider studies are stored
        if dry_run:
            raise UsageError("--widen stores the wider studies, and --dry-run nothing: give one of them")
        sitting = replace(sitting, config=widened_by_hand(config, widen))
    if dry_run:
        sitting.check()  # what is wrong is said before what it would amount to
        print_summary(config, make_plans(config))
    raise typer.Exit(sitting.search(dry_run=dry_run))
