"""The search: asks the samplers, has the trials' runs made, tells the samplers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kftune.results import CurvePoint, RunResult
from kftune.storage.repository import Repository
from kftune.study.config import StudyConfig, make_plans
from kftune.study.sessions.job import Job
from kftune.study.sessions.opening import sole_writer, study_records
from kftune.study.sessions.pruning import Judge
from kftune.study.sessions.reporting import Reporter, StudyTotals
from kftune.study.sessions.session import Interrupt, RunSummary, Session
from kftune.study.sessions.trials import OpenTrial, Trials, run_seed
from kftune.study.sessions.warm_start import enqueue, find_candidates

__all__ = ["check_sources", "run_studies"]


def run_studies(
    config: StudyConfig,
    *,
    repository: Repository,
    devices: Sequence[str],
    data_dir: Path,
    reporter: Reporter | None = None,
    interrupt: Interrupt | None = None,
) -> RunSummary:
    """Bring every study of a study file to its number of trials, going on from what is stored.

    Args:
        config: the study file.
        repository: an open database that no other runner writes.
        devices: one entry per slot.
        data_dir: where datasets are.
        reporter: is told what happens.
        interrupt: asks for an orderly stop.

    Raises:
        StudyChangedError: a study of this name is stored with another configuration; nothing is written.
        StorageError: the database cannot be written any more (a full disk, say); what is stored is safe.
        StudyLockedError: another process is running studies in this database; nothing is written.
        UsageError: a study to start from is not there; nothing is written.
        KeyboardInterrupt: passed on after the workers were ended and the session's seconds stored.
    """
    session = _Search(
        config, repository=repository, devices=devices, data_dir=data_dir, reporter=reporter, interrupt=interrupt
    )
    with sole_writer(repository):
        return session.run()


def check_sources(config: StudyConfig) -> None:
    """See that there is what new studies are to start from, before there is a database for them.

    Raises:
        UsageError: a study to start from is not there.
        StorageError: its database cannot be read.
    """
    if config.warm_start and not Repository.is_made(config.storage):
        find_candidates(config, make_plans(config), None)


class _Search(Session):
    """Makes the runs of trials until every study has as many as it should."""

    trials: Trials
    judge: Judge
    spent_before: float
    limit_reached: str | None = None

    def run(self) -> RunSummary:
        """See :func:`run_studies`."""
        self.trials = Trials(self.config, plans=self.plans, repository=self.repository, ledger=self.ledger)
        candidates = find_candidates(self.config, self.plans, self.repository)
        self.repository.register(study_records(self.config, self.trials.n_trials))
        if self.trials.finished():
            return RunSummary("already_complete")
        enqueue(candidates, plans=self.plans, repository=self.repository, say=self.reporter.message)
        self.spent_before = sum(s.ledger.get("wall", 0.0) for s in self.repository.sessions(self.config.name))
        self.judge = Judge(self.config, repository=self.repository)
        self.open_trials: dict[tuple[str, int], OpenTrial] = {}
        self.trials.read_stored()
        self.reporter.started(self._totals(), self.devices)
        self._work()
        if self.crash is not None:
            return RunSummary("crashed", self.crash, self.n_runs)
        if self.trials.finished():
            return RunSummary("complete", n_runs=self.n_runs)
        cut_off = self.interrupt.requested and self.open_trials
        if self.limit_reached is not None and not cut_off:
            return RunSummary("limited", self.limit_reached, self.n_runs)
        return RunSummary("interrupted", n_runs=self.n_runs)

    def _totals(self) -> list[StudyTotals]:
        return [self._total(plan.study) for plan in self.plans]

    def _total(self, study: str) -> StudyTotals:
        """A trial that is finished has the runs that are stored, which may be fewer than ``repeats``."""
        finished = self.trials.finished_numbers(study)
        runs = self.repository.runs(study, curves=False)
        n_trials = max(self.trials.n_trials[study], len(finished))
        return StudyTotals(
            study=study,
            n_trials=n_trials,
            n_runs=sum(run.trial in finished for run in runs) + (n_trials - len(finished)) * self.config.repeats,
            n_runs_done=len(runs),
            n_trials_done=len(finished),
        )

    # -- the loop's questions ----------------------------------------------------------------------------------------

    def _may_begin(self) -> bool:
        hours = self.config.limit.hours
        if hours is not None and self.spent_before + self.ledger.wall_seconds() >= hours * 3600:
            self.limit_reached = f"limit.hours: {hours:g} h are spent"
            return False
        return super()._may_begin()

    def _more_jobs(self) -> list[Job] | None:
        limit = self.config.limit.trials
        if limit is not None and self.trials.n_begun >= limit:  # what is begun is made to its end
            self.limit_reached = f"limit.trials: {limit} trials are made"
            return None
        trial = self.trials.next_in_turn()
        if trial is None:
            return None
        self.open_trials[trial.plan.study, trial.number] = trial
        jobs = self._jobs(trial)
        if not jobs:
            self._skip_the_rest(trial)
        return jobs

    def _jobs(self, trial: OpenTrial) -> list[Job]:
        """The runs of a trial that may be begun now."""
        return [
            Job(
                plan=trial.plan,
                trial=trial.number,
                repeat=repeat,
                params=trial.params,
                seed=run_seed(self.config.seed, repeat),
                is_judged=repeat == 0 and self.config.pruner is not None,
            ).after(trial.superseded.get(repeat, ()))
            for repeat in self.trials.missing_repeats(trial)
        ]

    def _done(self, job: Job, result: RunResult) -> list[Job]:
        trial = self.open_trials[job.plan.study, job.trial]
        self.trials.remember_untrained(trial.plan, job.repeat, result)
        was_first = not trial.results
        trial.results[job.repeat] = result
        if len(trial.results) == self.config.repeats:
            self._tell(trial)
            return []
        # Where a first run decides about the others, they were not begun with it.
        jobs = self._jobs(trial) if was_first and self.trials.first_run_decides else []
        if not self.trials.missing_repeats(trial):
            self._skip_the_rest(trial)
        return jobs

    def _skip_the_rest(self, trial: OpenTrial) -> None:
        """Its first run has decided that it has no others."""
        if len(trial.results) < self.config.repeats:
            self.reporter.runs_skipped(trial.plan.study, self.config.repeats - len(trial.results))
        self._tell(trial)

    def _submit(self, slot: int, job: Job) -> None:
        if job.is_judged:
            self.judge.begin(job.plan, job.trial)
        super()._submit(slot, job)

    def _goes_on(self, job: Job, point: CurvePoint) -> bool:
        return self.judge.goes_on(job.plan, job.trial, point, untrained=job.points[0])

    def _tell(self, trial: OpenTrial) -> None:
        study = trial.plan.study
        planned, expected = self.trials.n_trials[study], self.trials.n_expected(study)
        value, best = self.trials.tell(trial)
        if self.trials.n_trials[study] != planned:  # a grid has grown
            self.repository.register(study_records(self.config, self.trials.n_trials))
            self.reporter.runs_added(study, (self.trials.n_expected(study) - expected) * self.config.repeats)
        del self.open_trials[study, trial.number]
        self.reporter.trial_finished(study, trial.number, value, best)
