"""How far the studies of a file are, and where its seconds went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from kftune.analysis.stored.results import FileResults, StudyResults
from kftune.results import Outcome, RunResult
from kftune.storage.code_changes import CodeChange, code_changes
from kftune.storage.repository import RunRecord

__all__ = ["FileStatus", "Ledger", "StudyStatus", "file_ledger", "file_statuses"]

_CUT_OFF = (Outcome.TIMED_OUT, Outcome.OUT_OF_MEMORY, Outcome.CRASHED)


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """One study.

    Attributes:
        study: full name.
        problem: label.
        optimizer: label.
        n_trials: how many it is to have.
        n_finished: trials that are settled.
        n_failed: settled trials without a value (a run crashed).
        n_running: trials asked for and not settled.
        n_runs: stored runs.
        outcomes: outcome → number of runs.
        best_value: lowest value among trials of which a run ended well.
        best_trial: its number.
    """

    study: str
    problem: str
    optimizer: str
    n_trials: int
    n_finished: int
    n_failed: int
    n_running: int
    n_runs: int
    outcomes: Mapping[str, int]
    best_value: float | None
    best_trial: int | None

    @property
    def is_complete(self) -> bool:
        """Whether it has all its trials."""
        return self.n_finished >= self.n_trials


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Where the seconds of a study file's sessions went, all of them together, those of confirming runs included.

    A session on two slots has two slot-seconds each second. ``overhead`` is what is left of them: asking and telling
    the sampler, storing, talking to workers, slots without work.

    Attributes:
        wall_seconds: of the sessions.
        slot_seconds: wall seconds times slots.
        train_seconds: on the training clock.
        evaluation_seconds: of evaluations within the runs.
        setup_seconds: loading data, building models and optimizers.
        warmup_seconds: before the training clock.
        worker_start_seconds: starting worker processes.
        asking_seconds: in the samplers, for new configurations.
        telling_seconds: in the samplers, with their values.
        storing_seconds: writing runs.
        lost_seconds: wall seconds of runs that were made again, of attempts that the machine lost, and of runs that
            were cut off (timed out, out of memory, crashed) after the last thing that is known of them.
    """

    wall_seconds: float
    slot_seconds: float
    train_seconds: float
    evaluation_seconds: float
    setup_seconds: float
    warmup_seconds: float
    worker_start_seconds: float
    asking_seconds: float
    telling_seconds: float
    storing_seconds: float
    lost_seconds: float = 0.0

    @property
    def sampling_seconds(self) -> float:
        """Asking and telling the samplers."""
        return self.asking_seconds + self.telling_seconds

    @property
    def overhead_seconds(self) -> float:
        """Slot-seconds outside runs, lost ones included, and the start of workers."""
        in_runs = self.train_seconds + self.evaluation_seconds + self.setup_seconds + self.warmup_seconds
        return self.slot_seconds - in_runs - self.lost_seconds - self.worker_start_seconds

    @property
    def overhead_share(self) -> float | None:
        """Of all slot-seconds; None if there are none yet."""
        return self.overhead_seconds / self.slot_seconds if self.slot_seconds > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        derived = {
            "sampling_seconds": self.sampling_seconds,
            "overhead_seconds": self.overhead_seconds,
            "overhead_share": self.overhead_share,
        }
        return asdict(self) | derived


@dataclass(frozen=True, kw_only=True)
class FileStatus:
    """All studies of one study file.

    Attributes:
        name: the study file's ``name``.
        studies: in the order of the file.
        n_sessions: how often it was run or resumed.
        started_at: start of the first session (UTC).
        ended_at: last known moment of the last session (UTC); None if that was killed or is running.
        ledger: see :class:`Ledger`.
        code_changes: targets of which more than one version has made runs.
    """

    name: str
    studies: tuple[StudyStatus, ...]
    n_sessions: int
    started_at: datetime | None
    ended_at: datetime | None
    ledger: Ledger
    code_changes: tuple[CodeChange, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every study has all its trials."""
        return all(study.is_complete for study in self.studies)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; times in ISO format."""
        return asdict(self) | {
            "studies": [asdict(study) | {"is_complete": study.is_complete} for study in self.studies],
            "is_complete": self.is_complete,
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "ended_at": self.ended_at.isoformat() if self.ended_at else None,
            "ledger": self.ledger.to_dict(),
        }


def file_statuses(files: Sequence[FileResults]) -> list[FileStatus]:
    """The state of every study file.

    Args:
        files: from :func:`kftune.analysis.stored.results.load_results`; curves are not needed.
    """
    return [
        FileStatus(
            name=file.name,
            studies=tuple(_study_status(study) for study in file.studies),
            n_sessions=len(file.sessions),
            started_at=file.sessions[0].started_at if file.sessions else None,
            ended_at=file.sessions[-1].ended_at if file.sessions else None,
            ledger=file_ledger(file),
            code_changes=tuple(code_changes(file.sessions, (run for study in file.studies for run in study.runs))),
        )
        for file in files
    ]


def _study_status(study: StudyResults) -> StudyStatus:
    best = next(iter(study.ranked()), None)
    finished = study.finished
    return StudyStatus(
        study=study.record.study,
        problem=study.record.problem,
        optimizer=study.record.optimizer,
        n_trials=study.record.n_trials,
        n_finished=len(finished),
        n_failed=sum(trial.trial.value is None for trial in finished),
        n_running=len(study.trials) - len(finished),
        n_runs=len(study.runs),
        outcomes=dict(Counter(run.result.outcome.value for run in study.runs)),
        best_value=best.trial.value if best else None,
        best_trial=best.trial.number if best else None,
    )


def file_ledger(file: FileResults) -> Ledger:
    """Where the seconds of a study file's sessions went; curves are not needed."""
    # Not those that came with the trials of a narrower box: another file's sessions made them, and it counts them.
    own = {session.id for session in file.sessions}
    counted = [run for s in file.studies for run in (*s.runs, *s.confirmations) if run.session_id in own]
    superseded = [run for run in file.superseded if run.session_id in own]
    results = [run.result for run in counted]

    def of_sessions(key: str) -> float:
        return sum(session.ledger.get(key, 0.0) for session in file.sessions)

    return Ledger(
        wall_seconds=of_sessions("wall"),
        slot_seconds=sum(
            session.ledger.get("wall", 0.0) * session.ledger.get("slots", len(session.devices))
            for session in file.sessions
        ),
        train_seconds=sum(result.train_seconds for result in results),
        evaluation_seconds=sum(result.evaluation_seconds for result in results),
        setup_seconds=sum(result.setup_seconds for result in results),
        warmup_seconds=sum(result.warmup_seconds for result in results),
        worker_start_seconds=of_sessions("worker_start"),
        asking_seconds=of_sessions("asking"),
        telling_seconds=of_sessions("telling"),
        storing_seconds=of_sessions("storing"),
        lost_seconds=_lost_seconds(file, counted, superseded),
    )


def _lost_seconds(file: FileResults, counted: Sequence[RunRecord], superseded: Sequence[RunRecord]) -> float:
    """Runs made again, the last seconds of failed ones, and what else the slots were busy with than stored runs."""
    again = sum(run.wall_seconds for run in superseded)
    unknown = sum(max(0.0, run.wall_seconds - _in_run(run.result)) for run in counted if run.result.outcome in _CUT_OFF)
    stored: dict[int, float] = {}
    for run in (*counted, *superseded):
        stored[run.session_id] = stored.get(run.session_id, 0.0) + run.wall_seconds
    attempts = sum(
        max(0.0, session.ledger["busy"] - stored.get(session.id or 0, 0.0))
        for session in file.sessions
        if "busy" in session.ledger
    )
    return again + unknown + attempts


def _in_run(result: RunResult) -> float:
    return result.train_seconds + result.evaluation_seconds + result.setup_seconds + result.warmup_seconds
