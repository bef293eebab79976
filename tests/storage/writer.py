"""Writes runs and trials as fast as it can, as a process of its own: ``python -m tests.storage.writer URL N_RUNS``.

Prints the number of a trial when its run is stored.
"""

import sys

import optuna

from kftune.storage.repository import Repository
from tests.storage.builders import curve, run_record, run_result, session_record, study_record


def main(url: str, n_runs: int) -> None:
    with Repository.open(url) as repository:
        repository.register([study_record()])
        session_id = repository.begin_session(session_record())
        for _ in range(n_runs):
            study = optuna.load_study(
                study_name=study_record().study,
                storage=repository.optuna_storage,
                sampler=optuna.samplers.RandomSampler(seed=0),
            )
            trial = study.ask()
            trial.suggest_float("lr", 0.0, 1.0)
            record = run_record(session_id, trial.number, result=run_result(curve=curve(20)))
            repository.add_run(record, session_ledger={"wall": float(trial.number)})
            print(trial.number, flush=True)
            study.tell(trial.number, 0.5)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
