import math

import pandas as pd

from kftune.analysis.stored.frames import (
    POINT_COLUMNS,
    RUN_COLUMNS,
    TRIAL_COLUMNS,
    points_frame,
    runs_frame,
    trials_frame,
)
from kftune.analysis.stored.results import load_results
from kftune.storage.repository import Repository
from tests.analysis.builders import UNTRAINED


def test_trials(filled: Repository) -> None:
    frame = trials_frame(load_results(filled))
    assert len(frame) == 7
    kfac = frame[frame.optimizer == "kfac"].set_index("trial")
    assert kfac.value[1] == 0.2
    assert math.isnan(kfac.value[4])
    assert kfac.state[4] == "fail"
    assert kfac.failure[3] == "out_of_memory"
    assert kfac.failure.isna()[0]
    assert kfac.params[1] == {"lr": 0.3, "fisher": "mc"}
    assert kfac.sampled[1] == {"lr": 0.3}


def test_runs(filled: Repository) -> None:
    frame = runs_frame(load_results(filled))
    assert len(frame) == 14
    run = frame[(frame.optimizer == "kfac") & (frame.trial == 2) & (frame.repeat == 1)].iloc[0]
    assert (run.outcome, run.value, run.device_name) == ("diverged", UNTRAINED, "A CPU @ 2 GHz")
    assert frame.value.isna().sum() == 1
    means = frame.groupby(["study", "trial"]).value.mean()
    assert means["demo/digits/sgd", 0] == (0.8 + 0.9) / 2


def test_points(filled: Repository) -> None:
    frame = points_frame(load_results(filled))
    sgd = frame[frame.optimizer == "sgd"]
    assert sgd.test_loss.tolist() == [UNTRAINED, 0.8, UNTRAINED, 0.9]
    assert sgd.train_loss.tolist() == [UNTRAINED / 2, 0.4, UNTRAINED / 2, 0.45]
    assert sgd.train_seconds.tolist() == [0.0, 1.0] * 2
    assert sgd["update"].tolist() == [0, 10] * 2  # DataFrame.update is a method
    assert sgd.point.tolist() == [0, 1] * 2
    assert sgd.accuracy.isna().all()
    assert len(frame) == sum(len(run.result.curve) for run in filled.runs())


def test_nothing_yet_still_has_columns(repository: Repository) -> None:
    files = load_results(repository)
    for frame, columns in (
        (trials_frame(files), TRIAL_COLUMNS),
        (runs_frame(files), RUN_COLUMNS),
        (points_frame(files), POINT_COLUMNS),
    ):
        assert isinstance(frame, pd.DataFrame)
        assert frame.empty
        assert tuple(frame.columns) == columns
