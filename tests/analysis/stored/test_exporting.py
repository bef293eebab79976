import math
from pathlib import Path

import pandas as pd
import pytest

from kftune.analysis.stored.exporting import long_points, long_runs
from kftune.analysis.stored.results import load_results
from kftune.results import Outcome
from kftune.storage.repository import Repository
from tests.analysis.builders import UNTRAINED, add_confirmation, add_trial, failed, result
from tests.analysis.conftest import KFAC
from tests.storage.builders import run_record


@pytest.fixture
def more(filled: Repository) -> Repository:
    add_confirmation(filled, KFAC, 1, [result(0.3), failed(Outcome.DIVERGED, 1e9)], lr=0.3)
    filled.add_run(run_record(1, 6, 0, superseded=True, result=result(0.4)), session_ledger={})
    return filled


def test_every_run_of_either_purpose_has_a_row(more: Repository) -> None:
    runs = long_runs(load_results(more))
    assert len(runs) == 14 + 2 + 1
    assert runs.groupby(["purpose", "superseded"]).size().to_dict() == {
        ("confirm", False): 2,
        ("search", False): 14,
        ("search", True): 1,
    }
    confirming = runs[runs.purpose == "confirm"].set_index("repeat")
    assert confirming.value.to_dict() == {0: 0.3, 1: UNTRAINED}
    assert confirming["param.lr"].tolist() == [0.3, 0.3]
    assert runs["param.fisher"].tolist() == ["mc"] * 17


def test_every_evaluation_has_a_row_with_what_its_run_is(more: Repository) -> None:
    files = load_results(more)
    points = long_points(files)
    confirming = points[points.purpose == "confirm"]
    assert confirming.test_loss.tolist() == [UNTRAINED, 0.3, UNTRAINED, 1e9]
    assert confirming.value.tolist() == [0.3, 0.3, UNTRAINED, UNTRAINED]
    assert confirming["param.lr"].tolist() == [0.3] * 4
    assert points.groupby(["purpose", "superseded"]).size()["search", True] == 2


def test_values_of_several_kinds_survive_a_file(repository: Repository, tmp_path: Path) -> None:
    for number, extra in enumerate(({"a": 1, "b": None}, {"a": "x"}, {"a": 2.5, "c": True})):
        add_trial(repository, KFAC, number, [], value=0.5)
        record = run_record(1, number, 0, study=KFAC, params={"lr": 0.1, **extra}, result=result(0.5))
        repository.add_run(record, session_ledger={})
    runs = long_runs(load_results(repository))
    runs.to_parquet(tmp_path / "runs.parquet")
    back = pd.read_parquet(tmp_path / "runs.parquet")
    assert back["param.a"].tolist() == ["1", '"x"', "2.5"]
    assert back["param.lr"].tolist() == [0.1] * 3
    assert [value is True for value in back["param.c"]] == [False, False, True]
    assert back["param.b"].isna().all()


def test_readings_have_columns(repository: Repository) -> None:
    add_trial(repository, KFAC, 0, [], value=0.5)
    repository.add_run(run_record(1, 0, 0), session_ledger={})
    points = long_points(load_results(repository))
    assert points["reading.kl_clip_active"].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_nothing_yet(repository: Repository) -> None:
    files = load_results(repository)
    assert long_runs(files).empty
    assert long_points(files).empty
    assert math.isnan(long_runs(files).value.mean())
