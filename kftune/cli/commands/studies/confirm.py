"""``kftune confirm``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from kftune.cli._options import DataDir, Devices, Retry, Storage, StoredStudy, Workers
from kftune.errors import UsageError

if TYPE_CHECKING:
    from kftune.storage.repository import Repository

__all__ = ["confirm"]


def confirm(
    study: StoredStudy = None,
    *,
    top: Annotated[int, typer.Option("--top", min=1, help="Configurations of each optimizer, best first.")] = 4,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Fresh seeds, the same for all of them.")] = 5,
    budget_factor: Annotated[
        str, typer.Option("--budget-factor", metavar="X,...", help="Multiples of the study's budget, e.g. 1,3.")
    ] = "1",
    devices: Devices = None,
    workers: Workers = None,
    data_dir: DataDir = None,
    retry: Retry = None,
    storage: Storage = None,
) -> None:
    """Train the best configurations again on fresh seeds, which is what compare ranks by."""
    from kftune.analysis.ranking.verdict import verdicts
    from kftune.analysis.stored.results import load_results
    from kftune.cli._session import Sitting, stored_config
    from kftune.cli.rendering.verdict_tables import print_verdict
    from kftune.study.config import without_password

    factors = _factors(budget_factor)
    config = stored_config(study, storage)
    again = ["kftune", "confirm", config.name, "--top", str(top), "--seeds", str(seeds)]
    again += ["--budget-factor", budget_factor, "--storage", without_password(config.storage)]
    for option, value in (("--devices", devices), ("--workers", workers), ("--data-dir", data_dir)):
        again += [] if value is None else [option, str(value)]
    sitting = Sitting(config, devices=devices, workers=workers, data_dir=data_dir, again=shlex.join(again), retry=retry)

    def show(repository: Repository) -> None:
        (file,) = load_results(repository, [config.name])
        for factor in factors:
            for verdict in verdicts(file, budget_factor=factor):
                print_verdict(verdict)

    raise typer.Exit(sitting.confirm(top=top, seeds=seeds, budget_factors=factors, show=show))


def _factors(text: str) -> tuple[float, ...]:
    try:
        factors = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--budget-factor must be numbers such as 1 or 1,3, got {text!r}") from None
    if not all(0 < factor < float("inf") for factor in factors):
        raise UsageError(f"--budget-factor: each must be above 0, got {text!r}")
    return factors
