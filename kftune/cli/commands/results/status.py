"""``kftune status``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from kftune.cli._options import AsJson, Storage, StoredStudy
from kftune.cli._target import find_target, open_to_read
from kftune.progress.output import counted, print_json, print_table, say
from kftune.wording import duration, number, outcome_title, trials_made

if TYPE_CHECKING:
    from kftune.analysis.stored.status import FileStatus, Ledger, StudyStatus

__all__ = ["status"]


def status(study: StoredStudy = None, *, storage: Storage = None, as_json: AsJson = False) -> None:
    """Show how far the studies are, and where the seconds went."""
    from kftune.analysis.stored.results import load_results
    from kftune.analysis.stored.status import file_statuses

    target = find_target(study, storage)
    with open_to_read(target.storage) as repository:
        statuses = file_statuses(load_results(repository, target.file_names(repository), curves=False))
        database = repository.name
    if as_json:
        print_json({"database": database, "files": [found.to_dict() for found in statuses]})
        return
    for found in statuses:
        _print(found, database)


def _print(found: FileStatus, database: str) -> None:
    made = trials_made((study.n_finished, study.n_trials) for study in found.studies)
    state = "complete" if found.is_complete else "not complete"
    say(f"{found.name}: {made} trials, {state} ({database})", bold=True)
    print_table(
        ("problem", "optimizer", "trials", "runs", "best", "in trial", "failed runs"),
        [_row(study) for study in found.studies],
        right=("trials", "runs", "best", "in trial"),
        wrap=("failed runs",),
    )
    if found.ledger.slot_seconds > 0:
        _print_seconds(found.ledger, found.n_sessions)
    if not found.is_complete:
        again = shlex.join(["kftune", "resume", found.name, "--storage", database])
        say(f"\nGo on with: {again}", whole=True)


def _row(study: StudyStatus) -> tuple[str, ...]:
    failed = [f"{n} {outcome_title(outcome)}" for outcome, n in study.outcomes.items() if outcome != "completed"]
    return (
        study.problem,
        study.optimizer,
        trials_made([(study.n_finished, study.n_trials)]).replace(" of ", "/"),
        str(study.n_runs),
        number(study.best_value),
        "–" if study.best_trial is None else str(study.best_trial),
        ", ".join(failed) or "–",
    )


def _print_seconds(ledger: Ledger, n_sessions: int) -> None:
    sessions = counted(n_sessions, "session")
    say(f"\n{duration(ledger.wall_seconds)} of wall time in {sessions}, of which")
    parts = {
        "training": ledger.train_seconds,
        "evaluation": ledger.evaluation_seconds,
        "set-up and warm-up": ledger.setup_seconds + ledger.warmup_seconds,
        "start of workers": ledger.worker_start_seconds,
        "runs made again or lost": ledger.lost_seconds,
        "overhead": ledger.overhead_seconds,
        "  asking the sampler": ledger.asking_seconds,
        "  telling it": ledger.telling_seconds,
        "  storing": ledger.storing_seconds,
    }
    rows = [(part, duration(s), f"{100 * s / ledger.slot_seconds:.1f}%") for part, s in parts.items()]
    print_table(("", "seconds of all slots", "share"), rows, right=("seconds of all slots", "share"))
