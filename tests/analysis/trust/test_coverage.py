from dataclasses import replace

from kftune.analysis.trust.coverage import study_coverages
from kftune.storage.records import RunRecord
from tests.analysis.memory import file, run, study, trial


def treated(number: int, treatments: dict[str, int] | None) -> RunRecord:
    made = run(0.5, trial=number)
    return replace(made, result=replace(made.result, treatments=treatments))


def test_shares_are_means_over_the_runs_that_tell() -> None:
    always = {"SGD": 60, "Kronecker-factored": 140}
    same = study([trial(i, [0.5], runs=[treated(i, told)]) for i, told in enumerate([always, always, None])])
    (found,) = study_coverages(file(same))
    assert (found.n_parameters, found.differs) == (200, False)
    assert list(found.shares.items()) == [("Kronecker-factored", 0.7), ("SGD", 0.3)]
    mixed = study([trial(i, [0.5], runs=[treated(i, told)]) for i, told in enumerate([always, {"SGD": 200}])])
    (found,) = study_coverages(file(mixed))
    assert found.differs
    assert dict(found.shares) == {"SGD": 0.65, "Kronecker-factored": 0.35}


def test_runs_from_before_tell_nothing() -> None:
    (found,) = study_coverages(file(study([trial(0, [0.5], runs=[treated(0, None)])])))
    assert (found.n_parameters, dict(found.shares), found.differs) == (None, {}, False)
