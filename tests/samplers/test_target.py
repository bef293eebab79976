"""A user's own sampler by its target: from the study file to the proposed configurations."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from kftune._targets import importable_from
from kftune.cli import main
from kftune.errors import ConfigError, UserCodeError
from kftune.space import Float, Space
from kftune.study.config import config_from_dict, load_config, make_plans
from kftune.study.samplers import SAMPLERS, make_sampler

MODULE = '''
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

made = []


class Halves(BaseSampler):
    """Proposes the middle of every range, and counts what it is told."""

    def __init__(self, *, share: float = 0.5):
        made.append(share)
        self.share = share
        self.seen = []

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, name, distribution):
        return distribution.low + self.share * (distribution.high - distribution.low)

    def after_trial(self, study, trial, state, values):
        study.set_user_attr(f"told {trial.number}", values)


class Unfinished(BaseSampler):
    def sample_relative(self, study, trial, search_space):
        return {}


class Failing(Halves):
    def sample_independent(self, study, trial, name, distribution):
        return 0.1 / (3 - trial.number)


def tpe(seed, n_candidates=24, *, multivariate: bool = True):
    """Optuna's, with other defaults."""
    return TPESampler(seed=seed, n_ei_candidates=n_candidates, multivariate=multivariate, n_startup_trials=1)


def needs(what):
    return RandomSampler()


def returns_nothing():
    pass


def raises():
    raise KeyError("a mistake of the user's own")


NUMBER = 3
'''

STUDY = """\
name: own_sampler
problems: [digits_mlp]
optimizers: [{name: sgd, space: {lr: {low: 0.01, high: 1.0, log: true}}, fixed: {batch_size: 64, momentum: 0.0}}]
budget: {updates: 2}
evaluation: {points: 1, train_examples: 10}
repeats: 1
trials: 5
startup_trials: 2
devices: [cpu]
threads: 1
"""
SPACE = Space({"lr": Float(low=0.01, high=1.0, log=True), "momentum": Float(low=0.0, high=0.9)})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_sampler.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study_file(place: Path, sampler: str) -> Path:
    path = place / "study.yaml"
    path.write_text(f"{STUDY}sampler: {sampler}\n")
    return path


def propose(target: str, options: dict[str, Any], n: int) -> list[dict[str, Any]]:
    study = optuna.create_study()
    for number in range(n):
        study.sampler = make_sampler(
            target, options=options, space=SPACE, seed=4, trial_number=number, n_startup_trials=2
        )
        trial = study.ask()
        params = SPACE.suggest(trial)
        study.tell(trial, float(params["lr"] or 0))
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize(
    ("sampler", "target", "args"),
    [
        ("my_sampler:Halves", "my_sampler:Halves", {}),
        ("{target: my_sampler:Halves, args: {share: 0.25}}", "my_sampler:Halves", {"share": 0.25}),
        ("{target: my_sampler:tpe, args: {n_candidates: 5}}", "my_sampler:tpe", {"n_candidates": 5}),
        ("{target: optuna.samplers:RandomSampler}", "optuna.samplers:RandomSampler", {}),
    ],
)
def test_read_and_written_again(place: Path, sampler: str, target: str, args: dict[str, Any]) -> None:
    config = load_config(study_file(place, sampler))
    assert (config.sampler.key, config.sampler.options) == (target, args)
    assert config_from_dict(json.loads(json.dumps(config.to_dict())), source="stored") == config
    (plan,) = make_plans(config)
    name = target.rpartition(":")[2].lower()
    assert plan.identity()["sampler"] == {"name": name, "target": target} | ({"args": args} if args else {})
    assert list(config.code_versions()) == ([target] if target.startswith("my_sampler") else [])


def test_arguments_at_their_default_change_nothing(place: Path) -> None:
    (plain,) = make_plans(load_config(study_file(place, "my_sampler:Halves")))
    (same,) = make_plans(load_config(study_file(place, "{target: my_sampler:Halves, args: {share: 0.5}}")))
    assert plain.identity() == same.identity()


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("my_sampler:Halfs", "sampler.target: 'my_sampler' has no attribute 'Halfs'; did you mean 'Halves'"),
        ("my_sampler:NUMBER", "sampler.target: 'my_sampler:NUMBER' is no sampler; it must be an Optuna sampler's"),
        ("my_sampler:Unfinished", "'my_sampler:Unfinished' does not implement infer_relative_search_space, sample_i"),
        ("my_sampler:needs", "sampler.args: sampler 'my_sampler:needs' needs the argument 'what'"),
        ("{target: my_sampler:Halves, args: {shaer: 1}}", "has no argument 'shaer'; did you mean 'share'?"),
        ("{target: my_sampler:tpe, args: {seed: 1}}", "sampler 'my_sampler:tpe': seed is set by kftune"),
        ("{target: my_sampler:returns_nothing}", "'my_sampler:returns_nothing' returned a NoneType, not an Optuna"),
        ("{target: my_sampler:Halves, points: 5}", "sampler.points: unknown key 'points'"),
        ("{target: my_sampler}", "must look like package.module:Class"),
        ("my_smapler:Halves", "there is no module 'my_smapler'"),
    ],
)
def test_mistakes_in_the_study_file(place: Path, sampler: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plans(load_config(study_file(place, sampler)))


def test_a_sampler_that_cannot_be_made_shows_its_traceback(place: Path) -> None:
    with pytest.raises(UserCodeError) as caught:
        make_plans(load_config(study_file(place, "my_sampler:raises")))
    assert 'KeyError: "a mistake of the user\'s own"' in str(caught.value)
    assert str(caught.value).endswith("the sampler 'my_sampler:raises' cannot be made")
    assert "kftune/study" not in str(caught.value)


def test_made_anew_for_every_trial_with_a_seed_of_its_own(place: Path) -> None:
    with importable_from(place):
        first = propose("my_sampler:tpe", {}, 8)
        assert propose("my_sampler:tpe", {}, 8) == first
        assert len({str(params) for params in first}) == 8
        assert propose("my_sampler:tpe", {"n_candidates": 1}, 8)[:2] == first[:2]
        assert propose("my_sampler:tpe", {"n_candidates": 1}, 8) != first
        # The first are the random ones that every sampler begins with.
        assert propose("random", {}, 2) == first[:2]
        halves = propose("my_sampler:Halves", {"share": 0.0}, 4)
        assert halves[2:] == [{"lr": 0.01, "momentum": 0.0}] * 2


def test_its_description(place: Path) -> None:
    with importable_from(place):
        entry = SAMPLERS.get("my_sampler:tpe")
    assert (entry.name, entry.summary) == ("tpe", "Optuna's, with other defaults.")
    assert dict(entry.options) == {"n_candidates": 24, "multivariate": True}


def test_a_study_with_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_file(place, "{target: my_sampler:Halves, args: {share: 0.25}}")
    assert main(["run", str(path), "--set", "storage=s.db", "--set", "trials=3"]) == 0
    assert main(["run", str(path), "--set", "storage=s.db"]) == 0  # goes on
    study = optuna.load_study(study_name="own_sampler/digits_mlp/sgd", storage="sqlite:///s.db")
    assert len(study.trials) == 5
    assert [trial.params["lr"] for trial in study.trials[2:]] == [pytest.approx(0.01 + 0.25 * 0.99)] * 3
    assert {"told 2", "told 3", "told 4"} <= set(study.user_attrs)
    assert main(["run", str(path), "--set", "storage=s.db", "--set", "sampler.args.share=0.75"]) == 2
    assert "sampler.args.share: 0.25 → 0.75" in capsys.readouterr().err


def test_a_mistake_while_it_proposes_ends_the_study_with_its_traceback(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(place, "my_sampler:Failing")
    assert main(["run", str(path), "--set", "storage=s.db"]) == 1
    err = capsys.readouterr().err
    assert "return 0.1 / (3 - trial.number)" in err
    assert "ZeroDivisionError" in err
    assert "the sampler 'my_sampler:Failing' failed at trial 3, lr" in err
    sys.modules.pop("my_sampler")  # another process, it would be
    (place / "my_sampler.py").write_text(MODULE.replace("0.1 / (3 - trial.number)", "0.5"))
    assert main(["run", str(path), "--set", "storage=s.db"]) == 0  # corrected, it goes on where it was
    study = optuna.load_study(study_name="own_sampler/digits_mlp/sgd", storage="sqlite:///s.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 5


def test_a_value_outside_of_the_range_is_not_taken(place: Path) -> None:
    with (
        importable_from(place),
        pytest.raises(UserCodeError, match=r"proposed lr=2.9799999999999995 at trial 2, outside of Float"),
    ):
        propose("my_sampler:Halves", {"share": 3.0}, 4)
