"""What every sampler must do: reproducible, resumable at any moment, right types, all kinds of dimensions."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import optuna
import pytest
import sqlalchemy

from kftune.errors import UnknownNameError, UsageError
from kftune.space import Categorical, Condition, Float, Int, Space, Value
from kftune.study.samplers import SAMPLERS, SamplerEntry, check_sampler, make_sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

N_STARTUP = 3
SEED = 7
N_TRIALS = 11  # enough for CMA-ES to finish a generation

Trials: TypeAlias = list[tuple[dict[str, Any], float | None]]

NUMERICAL = Space({"lr": Float(low=1e-4, high=1.0, log=True), "batch_size": Int(low=16, high=512, log=True)})
FLAT = Space(
    {
        "lr": Float(low=1e-3, high=1e-1, log=True),
        "damping": Float(low=1e-2, high=1.0, log=True, relative_to="lr"),
        "factor_decay": Float(low=0.5, high=0.99, log=True, complement=True),
        "momentum": Float(low=0.0, high=0.99),
        "batch_size": Int(low=16, high=64, log=True),
        "layers": Int(low=1, high=2),
        "fisher": Categorical(choices=("mc", "empirical", None, True)),
        "kl_clip": Float(low=0.1, high=0.1),
    },
    {"statistics_every": 5},
)
CONDITIONAL = Space(
    {
        "lr": Float(low=1e-4, high=1.0, log=True),
        "schedule": Categorical(choices=("constant", "linear")),
        "rate": Float(low=0.01, high=3.0, log=True, when=Condition("schedule", ("linear",))),
        "steps": Int(low=1, high=9, when=Condition("schedule", ("linear",))),
    }
)
# The condition is on a fixed value: nothing is conditional about it.
SETTLED = Space(
    {
        "lr": Float(low=1e-4, high=1.0, log=True),
        "rate": Float(low=0.01, high=3.0, log=True, when=Condition("schedule", ("linear",))),
        "never": Categorical(choices=("a", "b"), when=Condition("schedule", ("constant",))),
        "never_either": Float(low=0.0, high=1.0, when=Condition("never", ("a",))),
    },
    {"schedule": "linear"},
)


@pytest.fixture(params=list(SAMPLERS), ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> SamplerEntry:
    value = request.param
    assert isinstance(value, SamplerEntry)
    return value


def loss(params: Mapping[str, Value]) -> float:
    """Some smooth positive function of whatever there is."""
    total = 0.0
    for i, name in enumerate(sorted(params)):
        value = params[name]
        number = {"constant": 1.3, "linear": 0.4, "mc": 0.2}.get(str(value), 0.9)
        if isinstance(value, float | int) and not isinstance(value, bool):
            number = math.log10(1e-6 + value)
        total += (number + 0.3 * i) ** 2
    return 0.01 * math.exp(0.1 * total)


class KilledError(Exception):
    """Raised in the middle of asking."""


class CutOff:
    """A trial whose connection breaks after some dimensions."""

    def __init__(self, trial: optuna.Trial, after: int) -> None:
        self._trial, self._left = trial, after

    def _next(self) -> optuna.Trial:
        if self._left == 0:
            raise KilledError
        self._left -= 1
        return self._trial

    def suggest_float(self, *args: Any, **kwargs: Any) -> float:
        return self._next().suggest_float(*args, **kwargs)

    def suggest_int(self, *args: Any, **kwargs: Any) -> int:
        return self._next().suggest_int(*args, **kwargs)

    def suggest_categorical(self, *args: Any, **kwargs: Any) -> Any:
        return self._next().suggest_categorical(*args, **kwargs)


def _open(path: Path) -> optuna.storages.RDBStorage:
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}", skip_compatibility_check=True, skip_table_creation=True)
    # A test's database need not survive a loss of power: most of the time went into waiting for the disk.
    sqlalchemy.event.listen(
        storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF")
    )
    storage.engine.dispose()
    return storage


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one study and no trial, to be copied: creating the tables is slow."""
    path = tmp_path_factory.mktemp("template") / "empty.db"
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    optuna.create_study(study_name="s", storage=storage)
    storage.remove_session()
    storage.engine.dispose()
    return path


class Search:
    """A study in a database file, driven as the runner does, with nothing kept between asks but the database."""

    def __init__(self, path: Path, name: str, space: Space, *, seed: int = SEED) -> None:
        self.path, self.name, self.space, self.seed = path, name, space, seed
        self._storage = _open(path)

    def reopen(self) -> None:
        """Another handle on the database, as another process would have."""
        self.close()
        self._storage = _open(self.path)

    def close(self) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def load(self, number: int) -> optuna.Study:
        sampler = make_sampler(
            self.name,
            options={},
            space=self.space,
            seed=self.seed,
            trial_number=number,
            n_startup_trials=N_STARTUP,
        )
        return optuna.load_study(study_name="s", storage=self._storage, sampler=sampler)

    def run(self, first: int, last: int) -> None:
        """Trials first, …, last − 1."""
        for number in range(first, last):
            study = self.load(number)
            trial = study.ask()
            study.tell(trial.number, loss(self.space.suggest(trial)))

    def begin(self, number: int, *, n_dimensions: int) -> None:
        """Ask for a trial and be killed after some of its dimensions."""
        trial = self.load(number).ask()
        with pytest.raises(KilledError):
            self.space.suggest(CutOff(trial, n_dimensions))

    def adopt(self, number: int) -> None:
        """Go on with a trial that was left running."""
        study = self.load(number)
        trial_id = study.get_trials(deepcopy=False)[number]._trial_id
        study.tell(number, loss(self.space.suggest(optuna.trial.Trial(study, trial_id))))

    def trials(self) -> Trials:
        return [(trial.params, trial.value) for trial in self.load(0).trials]


@pytest.fixture
def new_search(empty_database: Path, tmp_path: Path) -> Iterator[Callable[..., Search]]:
    """Makes studies, each in a database of its own."""
    made: list[Search] = []

    def make(name: str, space: Space, **settings: Any) -> Search:
        path = tmp_path / f"{len(made)}.db"
        shutil.copy(empty_database, path)
        made.append(Search(path, name, space, **settings))
        return made[-1]

    yield make
    for search in made:
        search.close()


_UNINTERRUPTED: dict[str, Trials] = {}


@pytest.fixture
def uninterrupted(entry: SamplerEntry, new_search: Callable[..., Search]) -> Trials:
    """The trials of a study that ran in one go."""
    if entry.name not in _UNINTERRUPTED:
        search = new_search(entry.name, CONDITIONAL)
        search.run(0, N_TRIALS)
        _UNINTERRUPTED[entry.name] = search.trials()
    return _UNINTERRUPTED[entry.name]


def test_another_seed_gives_other_trials(
    entry: SamplerEntry, uninterrupted: Trials, new_search: Callable[..., Search]
) -> None:
    other = new_search(entry.name, CONDITIONAL, seed=SEED + 1)
    other.run(0, 4)
    assert all(params not in [params for params, _ in uninterrupted[:4]] for params, _ in other.trials()[:1])


@pytest.mark.parametrize("cut", [1, 6])
def test_resumed_in_the_middle_of_an_ask_it_goes_on_alike(
    entry: SamplerEntry, uninterrupted: Trials, new_search: Callable[..., Search], cut: int
) -> None:
    resumed = new_search(entry.name, CONDITIONAL)
    resumed.run(0, cut)
    resumed.begin(cut, n_dimensions=1)
    resumed.reopen()
    resumed.adopt(cut)
    resumed.run(cut + 1, 8)
    resumed.begin(8, n_dimensions=0)
    resumed.reopen()
    resumed.adopt(8)
    resumed.run(9, N_TRIALS)
    assert resumed.trials() == uninterrupted


@pytest.mark.parametrize("space", [FLAT, CONDITIONAL, SETTLED, NUMERICAL], ids=["flat", "if", "settled", "numerical"])
def test_values_have_their_types_and_stay_in_their_ranges(entry: SamplerEntry, space: Space) -> None:
    study = optuna.create_study()
    for number in range(8):
        study.sampler = make_sampler(
            entry.name, options={}, space=space, seed=0, trial_number=number, n_startup_trials=N_STARTUP
        )
        trial = study.ask()
        params = space.suggest(trial)
        study.tell(trial, loss(params))
        for name, dimension in space.dimensions.items():
            if dimension.when is not None and not dimension.when.holds(params):
                assert name not in params
                continue
            sampled = trial.params[dimension.sampled_name(name)]
            if isinstance(dimension, Categorical):
                assert sampled in dimension.choices
                continue
            assert type(sampled) is (float if isinstance(dimension, Float) else int)
            if not (isinstance(dimension, Float) and dimension.complement):
                assert dimension.low <= sampled <= dimension.high
    configurations = {str(trial.params) for trial in study.trials}
    assert len(configurations) > 4


def test_first_trials_are_the_same_random_ones(
    entry: SamplerEntry, uninterrupted: Trials, new_search: Callable[..., Search]
) -> None:
    if not entry.random_start:
        pytest.skip("it has no random start")
    random = new_search("random", CONDITIONAL)
    random.run(0, N_STARTUP + 1)
    assert uninterrupted[:N_STARTUP] == random.trials()[:N_STARTUP]
    assert not entry.learns or uninterrupted[N_STARTUP] != random.trials()[N_STARTUP]


def test_one_that_does_not_learn_proposes_the_same_whatever_the_results(
    entry: SamplerEntry, uninterrupted: Trials, new_search: Callable[..., Search]
) -> None:
    if entry.learns:
        pytest.skip("it learns from results")
    other = new_search(entry.name, CONDITIONAL)
    for number in range(N_TRIALS):
        study = other.load(number)
        study.tell(number, -loss(other.space.suggest(study.ask())))
    assert [params for params, _ in other.trials()] == [params for params, _ in uninterrupted]


def test_trials_that_run_at_once_differ(entry: SamplerEntry, new_search: Callable[..., Search]) -> None:
    search = new_search(entry.name, CONDITIONAL)
    search.run(0, 5)
    for number in range(5, 9):
        search.space.suggest(search.load(number).ask())
    running = [params for params, value in search.trials() if value is None]
    assert len(running) == 4
    assert len({str(params) for params in running}) == 4


def test_without_any_value_it_goes_on_at_random(entry: SamplerEntry) -> None:
    """Trials lost to crashes have no value; a study may have nothing else."""
    study = optuna.create_study()
    for number in range(N_STARTUP + 2):
        study.sampler = make_sampler(
            entry.name, options={}, space=NUMERICAL, seed=0, trial_number=number, n_startup_trials=N_STARTUP
        )
        trial = study.ask()
        NUMERICAL.suggest(trial)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert len({str(trial.params) for trial in study.trials}) == N_STARTUP + 2


def test_given_trials_are_tried_as_they_are(entry: SamplerEntry, new_search: Callable[..., Search]) -> None:
    """Enqueued at the start and in the middle, whole and in part; what is not given the sampler adds."""
    search = new_search(entry.name, CONDITIONAL)
    whole = {"lr": 0.025, "schedule": "linear", "rate": 0.7, "steps": 4}
    search.load(0).enqueue_trial(whole)
    search.run(0, 5)
    search.load(0).enqueue_trial({"lr": 0.5, "schedule": "constant"})
    search.load(0).enqueue_trial({"lr": 0.25})
    search.begin(5, n_dimensions=1)
    search.reopen()
    search.adopt(5)
    search.run(6, 9)
    params = [params for params, _ in search.trials()]
    assert params[0] == whole
    assert params[5] == {"lr": 0.5, "schedule": "constant"}
    assert params[6]["lr"] == 0.25
    assert params[6].keys() >= {"lr", "schedule"}
    assert len({str(each) for each in params}) == 9


def test_pruned_and_failed_trials_among_the_others(entry: SamplerEntry, new_search: Callable[..., Search]) -> None:
    def make() -> Trials:
        search = new_search(entry.name, CONDITIONAL)
        search.run(0, 3)
        for number, state in ((3, "PRUNED"), (4, "FAIL"), (5, "PRUNED")):
            study = search.load(number)
            trial = study.ask()
            value = loss(search.space.suggest(trial))
            if number == 3:  # trial 5 is pruned before it reports anything
                trial.report(2 * value, 1)
            study.tell(number, state=optuna.trial.TrialState[state])
        search.run(6, 9)
        return search.trials()

    first = make()
    assert len({str(params) for params, _ in first}) == 9
    assert make() == first


def test_a_sampler_that_cannot_search_a_dimension_says_so() -> None:
    plain = SamplerEntry(name="plain", make=optuna.samplers.RandomSampler, summary="", source="")
    with pytest.raises(UsageError, match="cannot search 'rate', which exists only for some values of 'schedule'"):
        replace(plain, conditional=False).check_space(CONDITIONAL)
    with pytest.raises(UsageError, match="cannot search the categorical dimension 'fisher': fix 'fisher', or use"):
        replace(plain, categorical=False).check_space(FLAT)
    replace(plain, categorical=False, conditional=False).check_space(NUMERICAL)


def test_options_are_checked(entry: SamplerEntry) -> None:
    assert entry.resolve_options({}) == dict(entry.options)
    assert entry.resolve_options(entry.options) == dict(entry.options)
    with pytest.raises(UsageError, match=f"sampler '{entry.name}' has no option 'nonsense'"):
        make_sampler(entry.name, options={"nonsense": 1}, space=NUMERICAL, seed=0, trial_number=0, n_startup_trials=1)
    for name in entry.options:
        with pytest.raises(UsageError, match=rf"sampler '{entry.name}': {name} must be .*, got \[\]"):
            entry.resolve_options({name: []})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpyopt", {"aquisition": "EI"}, "no option 'aquisition'; did you mean 'acquisition'"),
        ("gpyopt", {"acquisition": "UCB"}, "acquisition must be one of EI, MPI, LCB, got 'UCB'"),
        ("gpyopt", {"jitter": -1}, r"jitter must be a number in \[0, 10\], got -1"),
        ("gpyopt", {"jitter": True}, "jitter must be a number"),
        ("gpyopt", {"jitter": float("nan")}, "jitter must be a number"),
        ("gpyopt", {"faithful": "yes"}, "faithful must be true or false, got 'yes'"),
        ("grid", {"extend": -1}, r"extend must be a whole number in \[0, 20\], got -1"),
        ("grid", {"points": 2.5}, r"points must be a whole number in \[2, 1000\], got 2.5"),
        ("qmc", {"sequence": "lhs"}, "sequence must be one of sobol, halton, got 'lhs'"),
    ],
)
def test_wrong_options_are_explained(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_sampler(name, options=options, space=NUMERICAL)
    assert "\n" not in str(caught.value)


def test_unknown_sampler_has_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="unknown sampler 'gpyotp'; did you mean 'gpyopt'"):
        check_sampler("gpyotp", options={}, space=NUMERICAL)


def test_all_names() -> None:
    assert set(SAMPLERS.names()) >= {"gpyopt", "optuna_gp", "tpe", "random", "grid", "qmc", "cmaes"}


def test_listing_samplers_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kftune.study.samplers import SAMPLERS; SAMPLERS.names();"
        "print([m for m in ('torch', 'GPyOpt', 'GPy', 'matplotlib', 'cmaes') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
