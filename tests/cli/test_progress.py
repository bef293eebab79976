"""What is said while studies run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kftune.progress import studies as _progress
from kftune.progress.studies import LiveReporter, Pace, PlainReporter, ProgressReporter, make_reporter
from kftune.results import CurvePoint, Outcome, RunResult
from kftune.study.config import StudyConfig, config_from_dict
from kftune.study.sessions.reporting import RunKey, StudyTotals
from kftune.study.sessions.session import Interrupt

SGD, KFAC = "small/digits_mlp/sgd", "small/digits_mlp/kfac"


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    return clock


@pytest.fixture
def config() -> StudyConfig:
    plain = {
        "name": "small",
        "problems": ["digits_mlp"],
        "optimizers": ["sgd", "kfac"],
        "budget": {"seconds": 30.0},
        "trials": 5,
        "sampler": "random",
    }
    return config_from_dict(plain, "tests")


@pytest.fixture
def out() -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=False)


def text_of(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def totals(n_done: int = 0) -> list[StudyTotals]:
    return [
        StudyTotals(study=study, n_trials=5, n_runs=10, n_runs_done=n_done, n_trials_done=n_done // 2)
        for study in (SGD, KFAC)
    ]


def point(seconds: float = 1.0, loss: float = 0.5) -> CurvePoint:
    return CurvePoint(train_seconds=seconds, update=7, train_loss=loss, test_loss=loss)


def finish(
    reporter: ProgressReporter, study: str, trial: int, repeat: int, outcome: Outcome = Outcome.COMPLETED
) -> None:
    message = "Traceback …\nValueError: wrong" if outcome is Outcome.CRASHED else ""
    reporter.run_finished(RunKey(study, trial, repeat), RunResult(outcome=outcome, message=message))


def test_the_time_left_follows_the_runs_of_this_session(clock: Clock) -> None:
    pace = Pace(n_runs=20, n_done=10, guess_seconds=None)
    assert pace.left() == "time left unknown"
    clock.now += 40
    pace.run_finished()
    clock.now += 20
    pace.run_finished()
    assert pace.seconds_left() == 8 * 30
    clock.now += 12
    assert pace.seconds_left() == 8 * 30 - 12
    clock.now += 1000
    assert pace.seconds_left() == 0
    for _ in range(8):
        pace.run_finished()
    assert pace.left() == "done"


def test_before_the_first_run_the_budget_is_the_guess(clock: Clock, config: StudyConfig, out: Console) -> None:
    reporter = PlainReporter(config, out)
    reporter.started(totals(n_done=4), ["cpu", "cpu"])
    assert text_of(out) == "small: 2 studies of 5 trials, 20 runs, 8 of them done already, on cpu, cpu, 3 min left\n"


@pytest.mark.parametrize("live", [False, True])
def test_a_run_under_way_tells_how_long_it_takes(clock: Clock, config: StudyConfig, out: Console, live: bool) -> None:
    by_updates = config_from_dict({**config.to_dict(), "budget": {"updates": 28}}, "tests")
    reporter = LiveReporter(by_updates, out, Interrupt()) if live else PlainReporter(by_updates, out)
    with reporter:
        reporter.started(totals(n_done=5), ["cpu", "cpu"])
        assert reporter._pace.left() == "time left unknown"
        reporter.run_started(RunKey(SGD, 2, 1), "cpu")
        clock.now += 15
        reporter.point(RunKey(SGD, 2, 1), point())  # 7 of 28: a run takes a minute, and two are made at a time
        assert reporter._pace.seconds_left() == 10 * 30 - 15
        clock.now += 45
        finish(reporter, SGD, 2, 1)
        reporter.run_started(RunKey(SGD, 3, 0), "cpu")
        clock.now += 1
        reporter.point(RunKey(SGD, 3, 0), point())  # from the first that has ended on, runs tell
        assert reporter._pace.seconds_left() == 9 * 60 - 1


def test_plain_lines_tell_of_every_trial(clock: Clock, config: StudyConfig, out: Console) -> None:
    with PlainReporter(config, out) as reporter:
        reporter.started(totals(), ["cpu"])
        for repeat in (0, 1):
            clock.now += 35
            reporter.point(RunKey(SGD, 0, repeat), point())
            finish(reporter, SGD, 0, repeat)
        reporter.trial_finished(SGD, 0, 0.123456, 0.123456)
        finish(reporter, KFAC, 0, 0, Outcome.DIVERGED)
        finish(reporter, KFAC, 0, 1)
        reporter.trial_finished(KFAC, 0, 2.5, None)
    lines = text_of(out).splitlines()
    assert lines[1] == "[0/20 runs, 9 min left] sgd, trial 0, run 1/2: 1.0/30 s, test loss 0.5"
    assert "[2/20 runs, 10 min left] sgd, trial 0: 0.1235, best 0.1235" in lines
    assert lines[-1] == "[4/20 runs, 5 min left] kfac, trial 0: 2.5 (diverged), best –"


def test_plain_lines_are_a_sign_of_life_every_ten_seconds(clock: Clock, config: StudyConfig, out: Console) -> None:
    reporter = PlainReporter(config, out)
    reporter.started(totals(), ["cpu"])
    for _ in range(30):
        clock.now += 1
        reporter.point(RunKey(SGD, 0, 0), point())
    assert len(text_of(out).splitlines()) == 1 + 3


def test_confirming_runs_are_counted_by_seeds_and_their_budget_is_theirs(clock: Clock, config: StudyConfig) -> None:
    reporter = make_reporter(config, Interrupt(), repeats=5)
    doing = reporter._doing(RunKey(SGD, 3, 2, budget_factor=3.0), point())
    assert doing == "sgd, trial 3, run 3/5: 1.0/90 s, test loss 0.5"
    by_updates = config_from_dict({**config.to_dict(), "budget": {"updates": 25}}, "tests")
    doing = make_reporter(by_updates, Interrupt())._doing(RunKey(SGD, 3, 1, budget_factor=0.5), point())
    assert doing == "sgd, trial 3, run 2/2: 7/12 updates, test loss 0.5"


def test_a_grid_that_grows_has_more_to_do(clock: Clock, config: StudyConfig, out: Console) -> None:
    reporter = LiveReporter(config, out, Interrupt())
    reporter.started(totals(), ["cpu"])
    reporter.runs_added(SGD, 4)
    assert reporter._pace.n_runs == 24
    assert reporter._totals[SGD].n_runs == 14
    reporter.runs_skipped(SGD, 1)
    assert reporter._pace.n_runs == 23
    with reporter:  # ends the display
        pass


def test_a_crash_is_told_with_its_reason(clock: Clock, config: StudyConfig, out: Console) -> None:
    reporter = PlainReporter(config, out)
    reporter.started(totals(), ["cpu"])
    finish(reporter, SGD, 3, 0, Outcome.CRASHED)
    assert "note: sgd, trial 3: a run crashed: ValueError: wrong" in text_of(out)


def test_names_are_as_long_as_they_must_be(clock: Clock, config: StudyConfig, out: Console) -> None:
    two = config_from_dict({**config.to_dict(), "problems": ["digits_mlp", "digits_autoencoder"]}, "tests")
    reporter = PlainReporter(two, out)
    reporter.started(totals(), ["cpu"])
    reporter.trial_finished(SGD, 0, 1.0, 1.0)
    assert "] digits_mlp/sgd, trial 0: 1" in text_of(out)


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)


def test_the_live_display_shows_studies_runs_and_an_interrupt(
    clock: Clock, config: StudyConfig, terminal: Console
) -> None:
    interrupt = Interrupt()
    reporter = LiveReporter(config, terminal, interrupt)
    plain = Console(file=io.StringIO(), width=80)

    def shown() -> list[str]:
        with plain.capture() as capture:
            plain.print(reporter._render())
        return capture.get().splitlines()

    with reporter:
        reporter.started(totals(n_done=2), ["cuda:0"])
        reporter.run_started(RunKey(KFAC, 1, 0), "cuda:0")
        assert shown()[2] == "cuda:0: kfac, trial 1, run 1/2: starting"
        reporter.point(RunKey(KFAC, 1, 0), point(seconds=12.34, loss=0.0123456))
        clock.now += 31
        assert shown()[2] == "cuda:0: kfac, trial 1, run 1/2: 12.3/30 s, test loss 0.01235"
        finish(reporter, KFAC, 1, 0)
        reporter.trial_finished(KFAC, 1, 0.02, 0.01)
        bars = shown()
        assert bars[0].split()[0::2] == ["sgd", "2/10"]
        assert "3/10 runs  best 0.01" in bars[1]
        assert bars[2].startswith("8 min left")
        interrupt.request()
        assert shown()[2] == "finishing the run in progress; Ctrl-C again stops at once"
    assert all(len(line) <= 80 for line in bars)
