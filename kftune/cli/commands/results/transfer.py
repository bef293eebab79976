"""``kftune transfer``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kftune.cli._options import AsJson, Storage
from kftune.cli._results import StoredStudies, load_files
from kftune.progress.output import print_json, print_table, say
from kftune.wording import loss, number

if TYPE_CHECKING:
    from kftune.analysis.ranking.transfer import Transfer
    from kftune.analysis.tuning.spread import OptimizerSpread

__all__ = ["transfer"]


def transfer(
    studies: StoredStudies = None,
    *,
    storage: Storage = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many of each study's best configurations.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Show how well each optimizer's best configurations on one problem do on another."""
    from kftune.analysis.ranking.transfer import transfers
    from kftune.analysis.tuning.spread import optimizer_spreads

    files = load_files(studies, storage)
    found, spreads = transfers(files, top=top), optimizer_spreads(files)
    if as_json:
        print_json({"transfers": [t.to_dict() for t in found], "spreads": [s.to_dict() for s in spreads]})
        return
    if not found:
        say("no optimizer has a result on two problems")
        return
    _print_transfers(found)
    _print_spreads(spreads)


def _print_transfers(found: Sequence[Transfer]) -> None:
    say("Best configurations on one problem, and their loss on another", bold=True)
    several = any(transfer.rank > 1 for transfer in found)
    in_files = len({study.partition("/")[0] for t in found for study in (t.source_study, t.target_study)}) > 1
    ranked = ("rank", "trial") if several else ()
    print_table(
        ("optimizer", "best on", *ranked, "tried on", "loss", "own best", "regret"),
        [_row(transfer, several=several, in_files=in_files) for transfer in found],
        right=("rank", "trial", "loss", "own best", "regret"),
        wrap=("optimizer", "best on", "tried on"),
    )
    say("regret: 0 as good as the problem's own best, 1 no better than the untrained model")
    if any(transfer.target_trial is None for transfer in found):
        say("–: not tried there; warm_start makes a study try another's best configurations")


def _row(transfer: Transfer, *, several: bool, in_files: bool) -> tuple[str, ...]:
    """A row; with the rank and the trial of the configuration, and with the problems' study files."""
    if transfer.target_trial is None:
        there: tuple[str, ...] = ("–", _loss(transfer.own_best), "–")
    else:
        regret = "–" if transfer.regret is None else number(transfer.regret, 2)
        there = (_loss(transfer.loss), _loss(transfer.own_best), regret)
    source, target = (
        study.rpartition("/")[0] if in_files else problem
        for study, problem in ((transfer.source_study, transfer.source), (transfer.target_study, transfer.target))
    )
    ranked = (str(transfer.rank), str(transfer.source_trial)) if several else ()
    return (transfer.optimizer, source, *ranked, target, *there)


def _loss(value: float | None) -> str:
    return "–" if value is None else loss(value)


def _print_spreads(spreads: Sequence[OptimizerSpread]) -> None:
    several = [spread for spread in spreads if any(len(d.regions) > 1 for d in spread.dimensions)]
    if not several:
        return
    say("\nWhere the best tenth of the trials lies in the search box (0: lower edge, 1: upper edge)", bold=True)
    print_table(
        ("optimizer", "searched", "median on each problem", "spread"),
        [
            (
                spread.optimizer,
                dimension.sampled_name,
                ", ".join(f"{region.problem} {region.median:.2f}" for region in dimension.regions),
                f"{dimension.spread:.2f}",
            )
            for spread in several
            for dimension in spread.dimensions
            if len(dimension.regions) > 1
        ],
        right=("spread",),
        wrap=("optimizer", "searched", "median on each problem"),
    )
    overall = ", ".join(f"{spread.optimizer} {spread.spread:.2f}" for spread in several)
    say(f"overall: {overall} (0: always in the same place, 0.29: anywhere)")
