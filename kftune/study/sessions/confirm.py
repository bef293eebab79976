"""Confirming: the best configurations of every study trained again on seeds that had no part in finding them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from kftune.errors import UsageError
from kftune.objective import run_objective
from kftune.results import Outcome, RunResult
from kftune.storage.repository import Repository, RunRecord
from kftune.study.config import StudyConfig, StudyPlan, make_plans
from kftune.study.sessions.job import Job
from kftune.study.sessions.opening import sole_writer
from kftune.study.sessions.reporting import Reporter, StudyTotals
from kftune.study.sessions.restoring import restore_lost
from kftune.study.sessions.session import Interrupt, RunSummary, Session

__all__ = ["confirm_seed", "confirm_studies"]


def confirm_seed(study_seed: int, repeat: int) -> int:
    """The seed of a confirming run: the same for every trial of every optimizer, none of the search's."""
    return int(np.random.SeedSequence((study_seed, repeat, 1)).generate_state(1)[0])


def confirm_studies(
    config: StudyConfig,
    *,
    repository: Repository,
    devices: Sequence[str],
    data_dir: Path,
    top: int = 4,
    seeds: int = 5,
    budget_factors: Sequence[float] = (1.0,),
    reporter: Reporter | None = None,
    interrupt: Interrupt | None = None,
    retry_crashed: bool = False,
) -> RunSummary:
    """Train the best configurations of every study again on fresh seeds; what is stored already is not repeated.

    The optimizers take turns, so that drift of the machine meets all alike. A study without a trial that ended well is
    left out, and named.

    Args:
        config: the study file, as it is stored.
        repository: an open database that no other runner writes.
        devices: one entry per slot.
        data_dir: where datasets are.
        top: how many configurations of each study.
        seeds: runs of each.
        budget_factors: multiples of the study's budget; each is confirmed on its own.
        reporter: is told what happens.
        interrupt: asks for an orderly stop.
        retry_crashed: make confirming runs again that have crashed.

    Raises:
        UsageError: no study has a trial that ended well, or a number makes no sense; nothing is written.
        StorageError: the database cannot be written any more; what is stored is safe.
        StudyLockedError: another process is running studies in this database; nothing is written.
        KeyboardInterrupt: passed on after the workers were ended and the session's seconds stored.
    """
    for name, value in (("top", top), ("seeds", seeds)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    for factor in budget_factors:
        if not 0 < factor < float("inf"):
            raise UsageError(f"budget factors must be above 0, got {factor:g}")
    with sole_writer(repository):
        say = Reporter().message if reporter is None else reporter.message
        restore_lost(config, make_plans(config), repository=repository, say=say)
    found = [(plan, _best_trials(plan, repository, top)) for plan in make_plans(config)]
    chosen = [(plan, run) for plan, runs in found for run in runs]
    if not chosen:
        raise UsageError(f"no study of {config.name} has a trial that ended well, so there is nothing to confirm")
    session = _Confirmation(
        config.model_copy(update={"repeats": seeds}),
        repository=repository,
        devices=devices,
        data_dir=data_dir,
        reporter=reporter,
        interrupt=interrupt,
    )
    with sole_writer(repository):
        if retry_crashed:
            session.retry_crashed("confirm")
        for plan in (plan for plan, runs in found if not runs):
            session.reporter.message(f"{plan.study} has no trial that ended well, so it is left out")
        return session.run(chosen, tuple(dict.fromkeys(budget_factors)))


def _best_trials(plan: StudyPlan, repository: Repository, top: int) -> list[RunRecord]:
    """A run of each of a study's best trials, best first; none if no trial ended well."""
    runs: dict[int, RunRecord] = {}
    for run in repository.runs(plan.study, curves=False):
        if run.result.outcome is Outcome.COMPLETED:
            runs.setdefault(run.trial, run)
    trials = [
        (trial.value, trial.number)
        for trial in repository.trials(plan.study)
        if trial.state == "complete" and trial.value is not None and trial.number in runs
    ]
    return [runs[number] for _, number in sorted(trials)[:top]]


@dataclass
class _Group:
    """The runs of one trial at one budget."""

    wanted: int
    values: list[float | None]


class _Confirmation(Session):
    """Trains chosen configurations on fresh seeds."""

    def run(self, chosen: Sequence[tuple[StudyPlan, RunRecord]], factors: Sequence[float]) -> RunSummary:
        """See :func:`confirm_studies`."""
        stored = {
            (run.study, run.budget_factor, run.trial, run.repeat)
            for run in self.repository.runs(curves=False, purpose="confirm")
        }
        jobs = [
            Job(
                plan=plan,
                trial=run.trial,
                repeat=repeat,
                params=run.params,
                seed=confirm_seed(self.config.seed, repeat),
                purpose="confirm",
                budget_factor=factor,
            )
            for factor in factors
            for repeat in range(self.config.repeats)
            for plan, run in _in_turn(chosen)
        ]
        missing = [job for job in jobs if (job.key.study, job.budget_factor, job.trial, job.repeat) not in stored]
        if not missing:
            return RunSummary("already_complete")
        self.groups: dict[tuple[str, float, int], _Group] = {}
        for job in missing:
            self.groups.setdefault(_group(job), _Group(0, [])).wanted += 1
        self.best: dict[str, float] = {}
        self.jobs = self._with_attempts(missing)
        self.reporter.started(_totals(jobs, missing), self.devices)
        self._work()
        if self.crash is not None:
            return RunSummary("crashed", self.crash, self.n_runs)
        return RunSummary("complete" if self.n_runs == len(missing) else "interrupted", n_runs=self.n_runs)

    def _with_attempts(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Superseded attempts of earlier sessions count."""
        earlier: dict[tuple[str, float, int, int], list[RunRecord]] = {}
        for run in self.repository.runs(curves=False, purpose="confirm", superseded=True):
            earlier.setdefault((run.study, run.budget_factor, run.trial, run.repeat), []).append(run)
        for job in jobs:
            yield job.after(earlier.get((job.key.study, job.budget_factor, job.trial, job.repeat), ()))

    def _more_jobs(self) -> list[Job] | None:
        job = next(self.jobs, None)
        return None if job is None else [job]

    def _done(self, job: Job, result: RunResult) -> list[Job]:
        group = self.groups[_group(job)]
        group.values.append(run_objective(result, self.config.objective))
        if len(group.values) == group.wanted:
            known = [value for value in group.values if value is not None]
            value = fmean(known) if len(known) == group.wanted else None
            if value is not None:
                self.best[job.key.study] = min(value, self.best.get(job.key.study, value))
            self.reporter.trial_finished(job.key.study, job.trial, value, self.best.get(job.key.study))
        return []


def _group(job: Job) -> tuple[str, float, int]:
    return job.key.study, job.budget_factor, job.trial


def _in_turn(chosen: Sequence[tuple[StudyPlan, RunRecord]]) -> list[tuple[StudyPlan, RunRecord]]:
    """The best of every study, then the second best, …."""
    ranks: dict[str, int] = {}
    ranked = []
    for plan, run in chosen:
        ranks[plan.study] = ranks.get(plan.study, -1) + 1
        ranked.append((ranks[plan.study], plan, run))
    return [(plan, run) for _, plan, run in sorted(ranked, key=lambda item: item[0])]


def _totals(jobs: Sequence[Job], missing: Sequence[Job]) -> list[StudyTotals]:
    studies = dict.fromkeys(job.key.study for job in jobs)

    def counts(found: Sequence[Job], study: str) -> tuple[int, int]:
        mine = [job for job in found if job.key.study == study]
        return len(mine), len({(job.budget_factor, job.trial) for job in mine})

    return [
        StudyTotals(
            study=study,
            n_trials=counts(jobs, study)[1],
            n_runs=counts(jobs, study)[0],
            n_runs_done=counts(jobs, study)[0] - counts(missing, study)[0],
            n_trials_done=counts(jobs, study)[1] - counts(missing, study)[1],
        )
        for study in studies
    ]
