"""``kftune best``."""

from __future__ import annotations

from typing import Annotated

import typer

from kftune.cli._options import AsJson, Storage, StoredStudy
from kftune.cli._target import find_target, open_to_read
from kftune.cli.rendering.tables import print_best
from kftune.progress.output import print_json, say

__all__ = ["best"]


def best(
    study: StoredStudy = None,
    *,
    storage: Storage = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many of each study.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Show the best configurations of every study."""
    from kftune.analysis.stored.results import load_results
    from kftune.analysis.tuning.best import best_configurations

    target = find_target(study, storage)
    with open_to_read(target.storage) as repository:
        found = best_configurations(load_results(repository, target.file_names(repository)), top=top)
    if as_json:
        print_json([of_study.to_dict() for of_study in found])
        return
    print_best(found)
    if any(of_study.configurations for of_study in found):
        say("\nspread: largest minus smallest of the repeats; the best of many was lucky too")
