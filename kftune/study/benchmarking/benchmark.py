"""Samplers side by side: seconds per suggestion, and how good what they find is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import optuna
from scipy import stats

from kftune.study.benchmarking.test_functions import LEAST, TEST_FUNCTIONS
from kftune.study.samplers import make_sampler

__all__ = ["Benchmark", "Contestant", "Regret", "Timing", "comparisons", "measure_regrets", "measure_seconds", "ranks"]

N_STARTUP = 8
"""Random trials at the start of every search; the same for all samplers."""

_LIMIT_SECONDS = 300.0
_ENOUGH_SECONDS = 20.0
_RELATIVE_LEAST = 1e-3  # regrets below a thousandth count as that when their logarithms are compared


@dataclass(frozen=True)
class Contestant:
    """A sampler with options, and what to call it."""

    label: str
    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Regret:
    """One search.

    Attributes:
        function: of :data:`TEST_FUNCTIONS`.
        contestant: its label.
        seed: of the sampler, the optimum's place and the noise.
        n_trials: of the search.
        regret: (loss without noise of the trial with the least observed value) / (least loss) − 1.
        seconds: for all suggestions together.
    """

    function: str
    contestant: str
    seed: int
    n_trials: int
    regret: float
    seconds: float


@dataclass(frozen=True)
class Timing:
    """How long a suggestion takes when there are so many observations; medians over repetitions.

    Attributes:
        contestant: its label.
        observations: how many.
        seconds: of wall time.
        cpu_seconds: of this process on all its threads: with one thread, what it takes on an idle machine.
    """

    contestant: str
    observations: int
    seconds: float
    cpu_seconds: float


def measure_regrets(
    contestants: Sequence[Contestant],
    *,
    functions: Sequence[str],
    n_seeds: int,
    n_trials: int,
    processes: int = 1,
    known: Sequence[Regret] = (),
    done: Callable[[Regret, float], None] = lambda regret, share: None,
) -> list[Regret]:
    """Search every function with every sampler from every seed.

    Args:
        contestants: the samplers.
        functions: names in :data:`TEST_FUNCTIONS`.
        n_seeds: seeds 0, …, n − 1; every sampler gets the same optimum, noise and random first trials.
        n_trials: of each search.
        processes: searches at once.
        known: searches made before, which are not made again.
        done: told of every finished search, and the share of the work that is done.
    """
    wanted = list(product(range(n_seeds), functions, contestants))  # by seed, so that shares of the work are alike
    by_key = {(r.seed, r.function, r.contestant): r for r in known if r.n_trials == n_trials}
    jobs = [job for job in wanted if (*job[:2], job[2].label) not in by_key]
    found = [by_key[*job[:2], job[2].label] for job in wanted if job not in jobs]
    for i, regret in enumerate(_results(jobs, n_trials, processes)):
        found.append(regret)
        done(regret, (i + 1) / len(jobs))
    labels = [contestant.label for contestant in contestants]
    return sorted(found, key=lambda r: (functions.index(r.function), labels.index(r.contestant), r.seed))


def _results(jobs: Sequence[tuple[int, str, Contestant]], n_trials: int, processes: int) -> Iterator[Regret]:
    if processes == 1:
        for seed, function, contestant in jobs:
            yield search(contestant, function=function, seed=seed, n_trials=n_trials)
        return
    with ProcessPoolExecutor(processes) as pool:
        futures = [
            pool.submit(search, contestant, function=function, seed=seed, n_trials=n_trials)
            for seed, function, contestant in jobs
        ]
        for future in as_completed(futures):
            yield future.result()


def search(contestant: Contestant, *, function: str, seed: int, n_trials: int) -> Regret:
    """One search of ``n_trials`` trials, the first 8 of them random."""
    tested = TEST_FUNCTIONS[function]
    instance, seconds = tested.instance(seed), 0.0
    with _quiet():
        study = optuna.create_study()
        for number in range(n_trials):
            start = time.perf_counter()
            study.sampler = make_sampler(
                contestant.sampler,
                options=contestant.options,
                space=tested.space,
                seed=seed,
                trial_number=number,
                n_startup_trials=N_STARTUP,
            )
            trial = study.ask()
            tested.space.suggest(trial)
            seconds += time.perf_counter() - start
            study.tell(trial, instance.observe(trial.params, trial_number=number))
    regret = instance.loss(study.best_trial.params) / LEAST - 1
    return Regret(
        function=function,
        contestant=contestant.label,
        seed=seed,
        n_trials=n_trials,
        regret=regret,
        seconds=seconds,
    )


def measure_seconds(
    contestants: Sequence[Contestant],
    *,
    function: str,
    observations: Sequence[int],
    repetitions: int,
    limit_seconds: float = _LIMIT_SECONDS,
    done: Callable[[str, float], None] = lambda what, share: None,
) -> list[Timing]:
    """Time one suggestion after so many observed random trials; samplers take turns, so that they share disturbances.

    A suggestion that would take longer than ``limit_seconds``, going by the third power of the observations, is left
    out.

    Args:
        contestants: the samplers.
        function: a name in :data:`TEST_FUNCTIONS`.
        observations: numbers of trials, ascending.
        repetitions: suggestions per sampler and number, each for another set of observations; fewer where they take
            long together.
        limit_seconds: see above.
        done: told what was finished, and the share of the work that is done.
    """
    taken: dict[tuple[str, int], list[_Taken]] = {}
    jobs = list(product(observations, range(repetitions), contestants))
    work = [n**2 for n, _, _ in jobs]
    with _quiet():
        for contestant in contestants:  # what is imported on first use, and the like, is not a suggestion
            _time_suggestion(contestant, _observed(function, N_STARTUP + 1, seed=0), function, seed=0)
        for i, (n, repetition, contestant) in enumerate(jobs):
            own = taken.setdefault((contestant.label, n), [])
            if (
                sum(each.wall for each in own) < _ENOUGH_SECONDS
                and _expected(taken, contestant.label, n) <= limit_seconds
            ):
                study = _observed(function, n, seed=repetition)
                own.append(_time_suggestion(contestant, study, function, seed=repetition))
            done(f"{contestant.label}, {n} observations", sum(work[: i + 1]) / sum(work))
    return [
        Timing(label, n, *(float(median) for median in np.median(times, axis=0)))
        for (label, n), times in taken.items()
        if times
    ]


class _Taken(NamedTuple):
    """Seconds of one suggestion."""

    wall: float
    cpu: float


def _expected(taken: Mapping[tuple[str, int], Sequence[_Taken]], label: str, n: int) -> float:
    """Seconds that a suggestion should take, going by the largest smaller number of observations."""
    known = [(m, max(times).wall) for (other, m), times in taken.items() if other == label and m < n and times]
    m, seconds = max(known, default=(n, 0.0))
    return seconds * (n / m) ** 3


def _observed(function: str, n: int, *, seed: int) -> optuna.Study:
    """A study of ``n`` random trials."""
    tested = TEST_FUNCTIONS[function]
    instance, study = tested.instance(seed), optuna.create_study()
    for number in range(n):
        study.sampler = make_sampler(
            "random", options={}, space=tested.space, seed=seed, trial_number=number, n_startup_trials=N_STARTUP
        )
        trial = study.ask()
        tested.space.suggest(trial)
        study.tell(trial, instance.observe(trial.params, trial_number=number))
    return study


def _time_suggestion(contestant: Contestant, study: optuna.Study, function: str, *, seed: int) -> _Taken:
    space = TEST_FUNCTIONS[function].space
    start, cpu_start = time.perf_counter(), time.process_time()
    study.sampler = make_sampler(
        contestant.sampler,
        options=contestant.options,
        space=space,
        seed=seed,
        trial_number=len(study.get_trials(deepcopy=False)),
        n_startup_trials=N_STARTUP,
    )
    space.suggest(study.ask())
    return _Taken(time.perf_counter() - start, time.process_time() - cpu_start)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without a line for every study and trial."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def ranks(regrets: Sequence[Regret]) -> dict[str, float]:
    """Mean rank of every sampler, 1 for the best, over the functions and seeds that all searched; ties share ranks."""
    cases: dict[tuple[str, int], dict[str, float]] = {}
    for regret in regrets:
        cases.setdefault((regret.function, regret.seed), {})[regret.contestant] = regret.regret
    labels = list(dict.fromkeys(regret.contestant for regret in regrets))
    complete = [case for case in cases.values() if len(case) == len(labels)]
    table = [stats.rankdata([case[label] for label in labels]) for case in complete]
    return dict(zip(labels, (float(mean) for mean in np.mean(table, axis=0)), strict=True))


@dataclass(frozen=True)
class Comparison:
    """One sampler against another on one function, seed by seed.

    Attributes:
        function: its name; None for all functions together.
        contestant: the one.
        other: the other.
        n: seeds that both searched from; over all functions their sum.
        wins: share of seeds on which the one's regret is smaller, ties counted half.
        ratio: geometric mean of the one's regret over the other's.
        low: lower end of a 95% interval of the ratio (Student's t over the seeds' logarithms).
        high: its upper end.
    """

    function: str | None
    contestant: str
    other: str
    n: int
    wins: float
    ratio: float
    low: float
    high: float


def comparisons(regrets: Sequence[Regret], *, contestant: str) -> list[Comparison]:
    """``contestant`` against every other, function by function and over all of them."""
    labels = list(dict.fromkeys(r.contestant for r in regrets if r.contestant != contestant))
    functions: list[str | None] = [*dict.fromkeys(r.function for r in regrets), None]
    values = {(r.contestant, r.function, r.seed): max(r.regret, _RELATIVE_LEAST) for r in regrets}
    found = []
    for function, other in product(functions, labels):
        own_cases = [key[1:] for key in values if key[0] == contestant and function in (None, key[1])]
        cases = [case for case in own_cases if (other, *case) in values]
        if not cases:
            continue
        own, others = (np.array([values[label, *case] for case in cases]) for label in (contestant, other))
        logs = np.log(own / others)
        half = _half_width(logs)
        found.append(
            Comparison(
                function=function,
                contestant=contestant,
                other=other,
                n=len(cases),
                wins=float(np.mean((own < others) + 0.5 * (own == others))),
                ratio=float(np.exp(logs.mean())),
                low=float(np.exp(logs.mean() - half)),
                high=float(np.exp(logs.mean() + half)),
            )
        )
    return found


def _half_width(logs: Any) -> float:
    n = len(logs)
    return float(stats.t.ppf(0.975, n - 1) * logs.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All results.

    Attributes:
        labels: the samplers, the first of which is compared to the others.
        timings: seconds per suggestion.
        regrets: what searches found.
    """

    labels: Sequence[str]
    timings: Sequence[Timing]
    regrets: Sequence[Regret]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the statistics over the regrets."""
        return {
            "timings": [asdict(timing) for timing in self.timings],
            "regrets": [asdict(regret) for regret in self.regrets],
            "ranks": ranks(self.regrets) if self.regrets else {},
            "comparisons": [asdict(c) for c in comparisons(self.regrets, contestant=self.labels[0])],
        }
