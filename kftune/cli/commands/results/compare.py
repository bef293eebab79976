"""``kftune compare``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kftune.cli._options import AsJson, Storage
from kftune.cli._results import StoredStudies, load_files
from kftune.errors import UsageError
from kftune.progress.output import print_json, say

if TYPE_CHECKING:
    from kftune.analysis.ranking.targets import PerformanceProfile, TimeToTarget
    from kftune.analysis.ranking.verdict import ProblemVerdict
    from kftune.analysis.stored.results import FileResults

__all__ = ["compare"]


def compare(
    studies: StoredStudies = None,
    *,
    storage: Storage = None,
    target: Annotated[
        float | None, typer.Option("--target", metavar="LOSS", help="Also the time until a loss is first reached.")
    ] = None,
    budget_factor: Annotated[
        float, typer.Option("--budget-factor", help="Rank by confirming runs of this multiple of the budget.")
    ] = 1.0,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX tables (booktabs).")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the optimizers: who is best, how sure that is, and at what cost.

    Study files that are named together are compared with each other on the problems that they have in common.
    """
    from kftune.analysis.ranking.together import together
    from kftune.analysis.ranking.verdict import verdicts

    if as_json and as_latex:
        raise UsageError("--json and --latex exclude each other")
    files = load_files(studies, storage)
    if studies and len(studies) > 1:
        files = together(files)
    found = [verdict for file in files for verdict in verdicts(file, budget_factor=budget_factor)]
    times, profiles = _targets(files, target, budget_factor)
    if as_json:
        print_json(_plain(found, times, profiles))
    elif as_latex:
        from kftune.cli.rendering.latex import verdict_table

        print("\n\n".join(verdict_table(verdict) for verdict in found))
    else:
        from kftune.cli.rendering.verdict_tables import print_times, print_verdict

        for i, verdict in enumerate(found):
            if i:
                say()
            print_verdict(verdict)
        if not all(verdict.is_confirmed for verdict in found):
            option = "" if budget_factor == 1 else f" --budget-factor {budget_factor:g}"
            say(
                f"\nThe best of many trials was lucky too: kftune confirm{option} trains the best again on fresh seeds."
            )
        print_times(times, profiles)


def _targets(
    files: Sequence[FileResults], target: float | None, budget_factor: float
) -> tuple[list[TimeToTarget], list[PerformanceProfile]]:
    from kftune.analysis.ranking.targets import performance_profiles, times_to_target

    if target is None:
        return [], []
    times = [time for file in files for time in times_to_target(file, targets=target, budget_factor=budget_factor)]
    return times, performance_profiles(times)


def _plain(
    found: Sequence[ProblemVerdict], times: Sequence[TimeToTarget], profiles: Sequence[PerformanceProfile]
) -> dict[str, Any]:
    return {
        "problems": [verdict.to_dict() for verdict in found],
        "times_to_target": [time.to_dict() for time in times],
        "performance_profiles": [profile.to_dict() for profile in profiles],
    }
